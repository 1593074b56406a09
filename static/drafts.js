// The review of drafts: one key decides, and the next draft comes.
"use strict";

(() => {
  const form = document.querySelector("[data-draft]");
  const edit = document.getElementById("edit");
  if (!form) return;
  let sent = false;

  // What was typed and not sent is no reason to keep it: the browser asks before it goes.
  const fields = [...edit.querySelectorAll("textarea")];
  const changed = () => fields.some((field) => field.value !== field.defaultValue);

  form.addEventListener("submit", (event) => {
    if (sent) event.preventDefault(); // a double press decides once
    sent = true;
  });
  form.querySelector("[data-key=a]").addEventListener("click", (event) => {
    if (!changed()) return;
    event.preventDefault(); // what is approved is what stands on the page
    edit.querySelector("[data-save]").click();
  });
  window.addEventListener("pageshow", () => {
    sent = false;
  });
  window.addEventListener("beforeunload", (event) => {
    if (!sent && changed()) event.preventDefault();
  });

  function openEdit() {
    edit.open = true;
    fields[0]?.focus();
    edit.scrollIntoView({ block: "nearest" });
  }

  form.querySelector("[data-key=e]").addEventListener("click", (event) => {
    event.preventDefault();
    openEdit();
  });

  document.addEventListener("keydown", (event) => {
    const active = document.activeElement;
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter" && edit.contains(active)) {
      event.preventDefault();
      if (!event.repeat) edit.querySelector("[data-save]").click();
      return;
    }
    if (event.key === "Escape" && edit.contains(active)) {
      active.blur();
      document.getElementById("draft-title").focus({ preventScroll: true });
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (window.laurel.isTyping(active) || document.querySelector("dialog:popover-open, details.menu[open]")) return;
    const control = form.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
    if (!control) return;
    event.preventDefault();
    if (!sent) control.click();
  });
})();
