"use strict";

// Chooses and filters the pictures. Words of captions only ever become text nodes, never HTML.
(() => {
  const toolbar = document.getElementById("toolbar");
  if (!toolbar) return;
  const gallery = document.getElementById("gallery");
  const field = document.getElementById("filter");
  const output = toolbar.querySelector("output");
  const choices = [...toolbar.querySelectorAll("input[type=radio]")];
  const cards = [...gallery.children].map((node) => ({
    node,
    texts: [...node.querySelectorAll(".words")].map((element) => ({ element, text: element.textContent })),
  }));

  // Scripts with capitals have blanks between words: there a search begins where a word does.
  function pattern(word) {
    const start = /^[\p{Lu}\p{Ll}\p{N}]/u.test(word) ? "(?<![\\p{L}\\p{N}])" : "";
    return start + word.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
  }

  function mark(card, wanted) {
    for (const { element, text } of card.texts) {
      const parts = [];
      let end = 0;
      for (const match of wanted ? text.matchAll(wanted) : []) {
        const marked = document.createElement("mark");
        marked.textContent = match[0];
        parts.push(text.slice(end, match.index), marked);
        end = match.index + match[0].length;
      }
      if (parts.length || element.firstElementChild) element.replaceChildren(...parts, text.slice(end));
    }
  }

  function show() {
    const patterns = field.value.normalize("NFC").split(/\s+/).filter(Boolean).map(pattern);
    const each = patterns.map((source) => new RegExp(source, "iu"));
    const any = patterns.length ? new RegExp(patterns.join("|"), "giu") : null;
    const found = cards.filter((card) => each.every((word) => card.texts.some(({ text }) => word.test(text))));
    for (const { value, nextElementSibling } of choices) {
      nextElementSibling.lastElementChild.textContent = found.filter(({ node }) => value in node.dataset).length;
    }
    const view = choices.find((choice) => choice.checked).value;
    const shown = found.filter(({ node }) => view in node.dataset);
    shown.sort((a, b) => a.node.dataset[view] - b.node.dataset[view]);
    shown.forEach((card) => mark(card, any));
    gallery.replaceChildren(...shown.map(({ node }) => node));
    const all = cards.filter(({ node }) => view in node.dataset).length;
    output.textContent = `${shown.length} of ${all} pictures`;
  }

  toolbar.addEventListener("submit", (event) => event.preventDefault());
  toolbar.addEventListener("input", show);
  toolbar.hidden = false;
  show();
})();
