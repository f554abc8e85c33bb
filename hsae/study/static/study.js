// Shortcuts and response times. Everything else works without this file.
"use strict";

const form = document.getElementById("trial");
const start = performance.now();
let sent = false;

function press(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  if (event.target.matches("input[type=text]")) return;
  // The digit row of some keyboards gives digits with Shift only.
  const digit = /^[1-5]$/.test(event.key) ? event.key : /^Digit([1-5])$/.exec(event.code)?.[1];
  if (digit) {
    const radio = form.querySelectorAll("input[type=radio]")[digit - 1];
    radio.checked = true;
    radio.focus();
  } else if (event.key === "s" || event.key === "S") {
    form.requestSubmit(document.getElementById("skip"));
  } else if (event.key === "Enter" && event.target === document.body) {
    form.requestSubmit(document.getElementById("next")); // elsewhere the browser does so itself
  } else {
    return;
  }
  event.preventDefault();
}

function send(event) {
  if (sent) event.preventDefault();
  sent = true;
  form.elements.milliseconds.value = Math.round(performance.now() - start);
}

if (form) {
  document.addEventListener("keydown", press);
  form.addEventListener("submit", send);
  // A page that the back button brings back as it was left could not be sent again.
  addEventListener("pageshow", (event) => event.persisted && location.reload());
}
