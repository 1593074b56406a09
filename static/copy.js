// A button with data-copy="id" copies the text of that element and says so.
"use strict";
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent.trim());
    button.textContent = "Copied";
  } catch {
    // Without a secure address the browser gives no clipboard: select it, so that one key copies.
    getSelection().selectAllChildren(source);
    button.textContent = "Selected: press Ctrl C";
  }
});
