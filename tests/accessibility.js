// What breaks what a page owes its readers (WCAG 2.2, AA, as far as a script can tell).
() => {
  const found = [], all = (selector) => [...document.querySelectorAll(selector)];
  if (!document.documentElement.lang) found.push("no language");
  if (!document.title) found.push("no title");
  for (const one of ["h1", "main"]) if (all(one).length !== 1) found.push(`not one ${one}`);
  const ids = all("[id]").map((element) => element.id);
  if (new Set(ids).size !== ids.length) found.push("an id twice");
  for (const control of all("input:not([type=hidden]), select, textarea, progress"))
    if (!control.ariaLabel && !control.labels[0]?.innerText.trim()) found.push("no label: " + control.outerHTML);
  for (const radio of all("input[type=radio]"))
    if (!radio.closest("fieldset")?.querySelector("legend")?.innerText) found.push("no legend: " + radio.outerHTML);
  for (const control of all("button, a"))
    if (!control.ariaLabel && !control.textContent.trim()) found.push("no name: " + control.outerHTML);
  for (const image of all("img:not([alt]), svg[role=img]:not([aria-label])")) found.push("no text: " + image.outerHTML);
  if (document.documentElement.scrollWidth > innerWidth) found.push(`wider than ${innerWidth} pixels`);

  const numbers = (color) => color.match(/[\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = numbers(color).map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor, alpha = numbers(color)[3] ?? 1;
      if (alpha === 1) return color;
      if (alpha !== 0) found.push("half transparent: " + element.outerHTML);
    }
    return "rgb(255, 255, 255)";
  };
  const contrast = (a, b) => {
    const [light, dark] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (light + 0.05) / (dark + 0.05);
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility() || element.matches("script, style")) continue;
    const ratio = contrast(getComputedStyle(element).color, behind(element));
    if (ratio < 4.5) found.push(`contrast ${ratio.toFixed(2)}: ${element.outerHTML.slice(0, 200)}`);
  }
  for (const mark of all("mark:not([title])")) {  // not by colour alone: by a line, or a title that says how much
    const style = getComputedStyle(mark), line = style.borderBottomColor;
    const plain = contrast(line, style.backgroundColor) >= 3 && parseFloat(style.borderBottomWidth) >= 2;
    if (!plain) found.push("no underline: " + mark.outerHTML);
  }
  return found;
}
