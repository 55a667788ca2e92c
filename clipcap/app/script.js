() => {
  // Copies the caption beside a button; where the browser refuses its clipboard (plain http), by a selection.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("button.copy");
    if (!button) return;
    const caption = button.closest("li").querySelector("textarea, p");
    try {
      await navigator.clipboard.writeText(caption.value ?? caption.innerText);
    } catch {
      caption.select ? caption.select() : getSelection().selectAllChildren(caption);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });

  // The captions of a batch as its user left them, without the photos that were not kept.
  window.editedCaptions = (rows) =>
    [...document.querySelectorAll(".editable > li")].flatMap((item, number) =>
      item.querySelector(".keep")?.checked ? [{ image: rows[number].image, caption: item.querySelector("textarea").value }] : [],
    );

  // Arrows, Home and End move among the tabs, as in any list of tabs.
  document.addEventListener("keydown", (event) => {
    const tab = event.target.closest?.("[role=tab]");
    if (!tab) return;
    const tabs = [...tab.closest("[role=tablist]").querySelectorAll("[role=tab]")].filter((other) => other.offsetParent);
    const place = tabs.indexOf(tab);
    const next = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: -1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const chosen = tabs.at(next % tabs.length);
    chosen.click();
    chosen.focus();
  });

  // Pictures to choose from have no words: a screen reader needs a name.
  const nameExamples = () => {
    for (const button of document.querySelectorAll(".gallery-item:not([aria-label])")) {
      const place = [...button.parentElement.querySelectorAll(".gallery-item")].indexOf(button);
      button.setAttribute("aria-label", `Example ${place + 1}`);
    }
  };
  nameExamples();
  new MutationObserver(nameExamples).observe(document.body, { childList: true, subtree: true });
}
