() => {
  // Copies the caption beside a button; where the browser refuses its clipboard (plain http), by a selection.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("button.copy");
    if (!button) return;
    const caption = button.closest("li").querySelector("p");
    try {
      await navigator.clipboard.writeText(caption.innerText);
    } catch {
      getSelection().selectAllChildren(caption);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
