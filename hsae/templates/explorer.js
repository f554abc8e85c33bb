"use strict";
// Data come from the page's own JSON and are only ever set as text, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const chars = Array.from(data.text); // by code point, as offsets are
const WIDTH = Math.min(data.width, chars.length);
const SHOWN = 300; // search results that are listed
const $ = (id) => document.getElementById(id);

function bytes(text) {
  const raw = atob(text);
  const array = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) array[i] = raw.charCodeAt(i);
  return array;
}

const snippets = {};
for (const [level, own] of Object.entries(data.snippets)) {
  snippets[level] = { position: bytes(own.position), value: bytes(own.value) };
  for (const name of ["first", "start", "bound"]) snippets[level][name] = new Uint32Array(bytes(own[name]).buffer);
}

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== ""));
  return node;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥");
const shown = (character) => (character === " " ? "␣" : visible(character));
const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const percent = (value) => (value >= 0.1 ? (100 * value).toFixed(0) : (100 * value).toPrecision(2)) + "%";
const latent = (level, index) => data.levels[level][index];
const address = (level, index) => `#${level}/${index}`;

function name(level, index) {
  const own = latent(level, index);
  if (own.labels && own.labels.length) return own.labels[0];
  if (own.rule) return visible(own.rule);
  return own.on.map(([character]) => shown(character)).join(" ");
}

// ---- the list on the left: the tree, or what was found

const ORDERS = {
  "activation, most first": (a, b) => b.mass - a.mass,
  "clearest rule first": (a, b) => (b.f1 ?? -1) - (a.f1 ?? -1),
  "most found again first": (a, b) => (b.recurs ?? -1) - (a.recurs ?? -1),
  "largest effect first": (a, b) => (b.kl_choice ?? -1) - (a.kl_choice ?? -1),
  "number": (a, b) => a.index - b.index,
};
for (const level of [1, 2]) data.levels[level].forEach((own, index) => Object.assign(own, { level, index }));

let listed = []; // [level, index] of the links, from the top

function row(level, index, note = "") {
  const id = el("span", { class: "id" }, `${level}/${index} `);
  const rule = el("span", { class: "rule" }, name(level, index));
  const link = el("a", { href: address(level, index) }, id, rule);
  if (location.hash === address(level, index)) link.setAttribute("aria-current", "true");
  return el("div", { class: "row" }, link, note && el("span", { class: "why" }, note));
}

const leaf = (index) => el("li", {}, row(1, index));

function branch(parent) {
  const children = parent.children.map(([index]) => index);
  const item = el("li");
  const toggle = el("button", {
    type: "button", "aria-expanded": "false", "aria-label": `children of 2/${parent.index}`, onclick: () => open(),
  }, children.length ? "▸" : "");
  toggle.disabled = !children.length;
  const open = (wanted = toggle.getAttribute("aria-expanded") === "false") => {
    if (!children.length) return;
    toggle.setAttribute("aria-expanded", String(wanted));
    toggle.textContent = wanted ? "▾" : "▸";
    item.querySelector("ul")?.remove();
    if (wanted) item.append(el("ul", {}, ...children.map(leaf)));
  };
  const line = row(2, parent.index);
  line.prepend(toggle);
  item.append(line);
  item.openBranch = open;
  return item;
}

function drawTree() {
  const parents = [...data.levels[2]].sort(ORDERS[$("order").value]);
  const orphans = data.levels[1].filter((own) => !own.parents.length).map((own) => own.index);
  const items = parents.map(branch);
  if (orphans.length) {
    items.push(el("li", {}, el("p", { class: "note" }, `${orphans.length} level-1 latents have no parent:`),
      el("ul", {}, ...orphans.map(leaf))));
  }
  $("list").replaceChildren(...items);
  listed = parents.map((own) => [2, own.index]);
  $("found").textContent = `${data.levels[2].length} level-2 latents with ${data.levels[1].length} children`;
}

// Snippet s of a level as text, made once.
const texts = {};
function snippetText(level, s) {
  texts[level] ??= [];
  return (texts[level][s] ??= chars.slice(snippets[level].start[s], snippets[level].start[s] + WIDTH).join(""));
}

function match(own, query) {
  const { level, index } = own;
  const single = Array.from(query).length === 1;
  if (!single && (own.labels ?? []).some((label) => label.toLowerCase().includes(query.toLowerCase()))) return [0, "label"];
  if (own.rule && own.rule.includes(query)) return [1, "rule"];
  const on = single && own.on.find(([character, share]) => character === query && share >= 0.1);
  if (on) return [2, `active on ${shown(query)}: ${percent(on[1])}`];
  const up = single && own.up.find(([character]) => character === query);
  if (up) return [3, `raises ${shown(query)}`];
  if (single) return null;
  const { first } = snippets[level];
  let n = 0;
  for (let s = first[index]; s < first[index + 1]; s++) n += snippetText(level, s).includes(query);
  return n ? [4 + 1 / n, n === 1 ? "1 snippet" : `${n} snippets`] : null;
}

function search() {
  const query = $("search").value;
  if (!query) return drawTree();
  const direct = query.match(/^#?([12])\/(\d+)$/);
  if (direct && latent(direct[1], Number(direct[2]))) {
    $("found").textContent = "press Enter to open it";
    listed = [[Number(direct[1]), Number(direct[2])]];
  } else {
    const hits = [];
    for (const level of [2, 1]) {
      for (const own of data.levels[level]) {
        const hit = match(own, query);
        if (hit) hits.push([hit[0], -own.mass, own, hit[1]]);
      }
    }
    hits.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    listed = hits.slice(0, SHOWN).map(([, , own, note]) => [own.level, own.index, note]);
    $("found").textContent = `${hits.length} latents${hits.length > SHOWN ? `, the first ${SHOWN} of them` : ""}`;
  }
  $("list").replaceChildren(...listed.map(([level, index, note]) => el("li", {}, row(level, index, note))));
}

// ---- the latent on the right

function snippetLine(level, s) {
  const { start, bound, position, value } = snippets[level];
  const line = el("div", { class: "text" });
  let at = 0;
  for (let k = bound[s]; k < bound[s + 1]; k++) {
    line.append(visible(chars.slice(start[s] + at, start[s] + position[k]).join("")));
    const mark = el("mark", { title: `${Math.round((100 * value[k]) / 255)}% of the largest activation` }, visible(chars[start[s] + position[k]]));
    // From white to orange; the bar below says the same without colour.
    mark.style.backgroundColor = `rgb(255, ${Math.round(255 - (75 * value[k]) / 255)}, ${Math.round(255 - (205 * value[k]) / 255)})`;
    mark.style.boxShadow = `inset 0 -${1 + Math.round((2 * value[k]) / 255)}px #8a4b00`;
    line.append(mark);
    at = position[k] + 1;
  }
  line.append(visible(chars.slice(start[s] + at, start[s] + WIDTH).join("")));
  return line;
}

function snippetParts(level, index) {
  const { first, start, bound, value } = snippets[level];
  const all = Array.from({ length: first[index + 1] - first[index] }, (_, i) => first[index] + i);
  const strongest = all.slice(0, data.strongest);
  const parts = [el("h2", {}, "Where it is strongest"), ...strongest.map((s) => snippetLine(level, s))];
  const others = all.slice(data.strongest);
  if (others.length) {
    parts.push(el("h2", {}, "Drawn from weaker activations"),
      el("p", { class: "note" }, "From the upper (75% to 95%), the middle (40% to 60%) and the lowest quarter of its activations."),
      ...others.map((s) => snippetLine(level, s)));
  }
  return parts;
}

function table(caption, heads, rows) {
  if (!rows.length) return null;
  const cell = (tag, value, i) => el(tag, { class: heads[i][1] ?? null, ...(tag === "th" ? { scope: "col" } : {}) }, value);
  return el("table", {}, el("caption", {}, caption),
    el("thead", {}, el("tr", {}, ...heads.map(([head], i) => cell("th", head, i)))),
    el("tbody", {}, ...rows.map((values) => el("tr", {}, ...values.map((value, i) => cell("td", value, i))))));
}

const link = (level, index) => el("a", { href: address(level, index) }, `${level}/${index}`);
const named = (level, index) => el("code", {}, name(level, index));
const NUMBER = "number";

function histogram(own) {
  const width = 240, height = 74, most = Math.max(...own.histogram, 1);
  const step = width / own.histogram.length;
  const bars = own.histogram.map((count, i) => {
    const tall = count ? Math.max((height * Math.log1p(count)) / Math.log1p(most), 1) : 0;
    return svg("rect", { x: i * step, y: height - tall, width: step - 1, height: tall }, svg("title", {}, `${count} tokens`));
  });
  const label = `activations from 0 to ${own.max}; the tallest bar has ${most} tokens (log scale)`;
  return svg("svg", { viewBox: `0 0 ${width} 92`, role: "img", "aria-label": label }, ...bars,
    svg("text", { x: 0, y: 88 }, "0"), svg("text", { x: width, y: 88, "text-anchor": "end" }, String(own.max)));
}

function characterTable(caption, entries, head, format) {
  return table(caption, [["character"], [head, NUMBER]], entries.map(([character, value]) => [el("code", {}, shown(character)), format(value)]));
}

function relatives(own) {
  if (own.level === 2) {
    return table("Children: level-1 latents whose strongest parent this is",
      [["latent"], ["what it is", "name"], ["weight", NUMBER], ["share", NUMBER], ["P(parent | child)", NUMBER], ["information", NUMBER]],
      own.children.map(([index, weight, share, p, u]) => [link(1, index), named(1, index), number(weight), percent(share), number(p), u === null ? "–" : percent(u)]));
  }
  return table("Parent", [["latent"], ["what it is", "name"], ["weight", NUMBER], ["share", NUMBER], ["P(parent | child)", NUMBER], ["information", NUMBER]],
    own.parents.map(([index, weight, share, p, u]) => [link(2, index), named(2, index), number(weight), percent(share), number(p), u === null ? "–" : percent(u)]));
}

function fact(term, value) {
  return el("div", {}, el("dt", {}, term), el("dd", {}, value));
}

function draw(level, index) {
  const own = latent(level, index);
  const change = (value) => (value > 0 ? "+" : "") + number(value);
  const main = $("latent");
  main.replaceChildren(
    el("h1", {}, `Level ${level}, latent ${index}`),
    el("dl", { class: "facts" },
      fact("rule of n-grams (a proxy, found by a program)", own.rule ? el("code", {}, visible(own.rule)) : "–"),
      fact("F1 of that rule on other text; by chance", own.f1 === null ? "–" : `${number(own.f1)}; ${number(own.f1_null, 3)}`),
      fact("active on", percent(own.density) + " of tokens"),
      fact("found again by another seed: cosine", number(own.recurs)),
      fact("change of the next character without it (KL, nats); random direction", own.kl === null ? "–" : `${number(own.kl, 3)}; ${number(own.kl_null, 3)}`),
      ...(own.labels && own.labels.length ? [fact("people's labels", own.labels.join("; "))] : [])),
    el("div", { class: "columns" },
      el("section", {}, ...snippetParts(level, index)),
      el("section", {},
        el("h2", {}, "Hierarchy"), relatives(own) ?? el("p", { class: "note" }, level === 2 ? "No children." : "No parent."),
        own.causal.length ? el("h2", {}, "Causal tracing") : null,
        table("Share of a task's effect when it alone is restored, with 95% interval", [["task"], ["share", NUMBER], ["low", NUMBER], ["high", NUMBER]],
          own.causal.map(([task, ...values]) => [task.replace(/_/g, " "), ...values.map((value) => number(value, 3))])),
        el("h2", {}, "Next characters"),
        el("p", { class: "note" }, "How the log probability of the next character changes, in nats, because of the latent: with it, less without it, where it is active. Which characters these are was chosen on the validation split; the numbers are of the test split."),
        el("div", { class: "columns" }, characterTable("raised", own.up, "nats", change), characterTable("lowered", own.down, "nats", change)),
        el("h2", {}, "Activations"), histogram(own), characterTable("characters it is active on", own.on, "share of its activation", percent),
        el("h2", {}, "Neighbours"),
        table("by decoder direction", [["latent"], ["what it is", "name"], ["cosine", NUMBER]],
          own.near.map(([i, value]) => [link(level, i), named(level, i), number(value)])),
        table("by co-activation", [["latent"], ["what it is", "name"], ["phi", NUMBER]],
          own.together.map(([i, value]) => [link(level, i), named(level, i), number(value)])))));
  main.scrollTop = 0;
  document.title = `${level}/${index} · ${data.title}`;
}

function overview() {
  const key = (keys, what) => el("li", {}, ...keys.flatMap((name) => [el("kbd", {}, name), " "]), what);
  $("latent").replaceChildren(
    el("h1", {}, data.title),
    el("p", {}, `Two levels of latents on ${chars.length.toLocaleString("en")} characters of ${data.corpus}. A level-2 latent (a parent) stands for a sum of level-1 latents (children).`),
    el("dl", { class: "facts" }, ...data.facts.map(([term, value]) => fact(term, value))),
    el("h2", {}, "Keyboard"),
    el("ul", {}, key(["/"], "search: part of a rule, of a snippet or of a label, a single character, or a number such as 2/17"),
      key(["Enter"], "(in the search) open the first"), key(["j", "k"], "the next, the previous of the list"),
      key(["p"], "to the parent"), key(["c"], "to the first child"), key(["→", "←"], "(in the tree) open, close a branch"),
      key(["h"], "this page")),
    el("p", { class: "note" }, "Rules are found by a program and say when a latent is active, not what it means; they are proxies and no human judgements. Characters and latents that are listed for what they do on a text were chosen on other text (the validation split) than the numbers beside them are of. Of an order by a number, the first are flattered by that number."));
  document.title = data.title;
}

// ---- where we are, and the keyboard

function here() {
  const place = location.hash.match(/^#([12])\/(\d+)$/);
  return place && latent(place[1], Number(place[2]));
}

function route() {
  const known = here();
  if (known) draw(known.level, known.index);
  else overview();
  for (const marked of document.querySelectorAll("nav a[aria-current]")) marked.removeAttribute("aria-current");
  if (!known) return;
  let there = document.querySelector(`nav a[href="${location.hash}"]`);
  if (!there && known.level === 1 && !$("search").value && known.parents.length) { // open the branch that it hangs on
    document.querySelector(`nav a[href="#2/${known.parents[0][0]}"]`)?.closest("li").openBranch(true);
    there = document.querySelector(`nav a[href="${location.hash}"]`);
  }
  there?.setAttribute("aria-current", "true");
  there?.scrollIntoView({ block: "nearest" });
}

function step(by) {
  const links = [...document.querySelectorAll("nav .tree a")];
  const at = links.findIndex((one) => one.getAttribute("href") === location.hash);
  const next = links[at < 0 ? (by > 0 ? 0 : links.length - 1) : at + by];
  if (next) location.hash = next.getAttribute("href");
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === $("search")) {
    if (event.key === "Enter" && listed.length) location.hash = address(listed[0][0], listed[0][1]);
    if (event.key === "Escape") { $("search").value = ""; search(); $("search").blur(); }
    return;
  }
  if (event.target.tagName === "SELECT") return;
  const item = event.target.closest?.("nav .tree > li");
  const own = here();
  const actions = {
    "/": () => $("search").focus(), j: () => step(1), k: () => step(-1), h: () => { location.hash = ""; },
    p: () => own?.parents?.length && (location.hash = address(2, own.parents[0][0])),
    c: () => own?.children?.length && (location.hash = address(1, own.children[0][0])),
    ArrowRight: () => item?.openBranch?.(true), ArrowLeft: () => item?.openBranch?.(false),
  };
  if (actions[event.key] && (item || !event.key.startsWith("Arrow"))) { event.preventDefault(); actions[event.key](); }
});

let waiting;
$("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 60); });
$("order").append(...Object.keys(ORDERS).map((label) => el("option", {}, label)));
$("order").addEventListener("change", search);
window.addEventListener("hashchange", route);
search();
route();
performance.mark("ready");
