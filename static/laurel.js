// What every page needs: theme switch, "?" dialog, inline errors for htmx, reachable scroll boxes.
"use strict";

(() => {
  const root = document.documentElement;
  const THEMES = ["auto", "light", "dark"];

  function setTheme(theme) {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    try {
      if (theme === "auto") localStorage.removeItem("laurel-theme");
      else localStorage.setItem("laurel-theme", theme);
    } catch {
      // Storage is switched off: the choice holds for this page.
    }
    showTheme();
  }

  function showTheme() {
    const theme = root.dataset.theme || "auto";
    for (const word of document.querySelectorAll("[data-theme-word]")) word.textContent = theme;
  }

  function isTyping(element) {
    return Boolean(
      element &&
        (element.isContentEditable ||
          element.matches("textarea, select, input:not([type=radio], [type=checkbox], [type=submit])")),
    );
  }

  // Apple's keyboards name the key that sends differently.
  function nameKeys() {
    if (!/Mac|iPhone|iPad/.test(navigator.platform)) return;
    for (const key of document.querySelectorAll("[data-submit-key]")) key.textContent = "⌘ ⏎";
  }

  // A box that scrolls must be reachable by keyboard.
  function makeScrollable(within) {
    for (const box of within.querySelectorAll("pre, .table-box, .chart, .prose table, .scrolls, .task-prompt > .turn")) {
      const scrolls = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
      if (scrolls) box.tabIndex = 0;
      else if (box.getAttribute("tabindex") === "0") box.removeAttribute("tabindex");
    }
  }

  function say(text, kind = "warn") {
    const place = document.getElementById("notices");
    if (!place) return;
    place.querySelector("[data-from-script]")?.remove();
    const notice = document.createElement("p");
    notice.className = `notice notice-${kind}`;
    notice.dataset.fromScript = "";
    notice.textContent = text;
    place.append(notice);
    place.scrollIntoView({ block: "nearest" });
  }

  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-theme-switch]")) {
      const now = root.dataset.theme || "auto";
      setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
    }
    // A menu closes when the reader clicks elsewhere.
    for (const menu of document.querySelectorAll("details.menu[open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      for (const menu of document.querySelectorAll("details.menu[open]")) {
        menu.open = false;
        menu.querySelector("summary").focus();
      }
    }
    if (event.key !== "?" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (isTyping(document.activeElement)) return;
    const dialog = document.getElementById("shortcuts");
    if (!dialog?.togglePopover) return;
    event.preventDefault();
    dialog.togglePopover();
  });

  // htmx: a refusal (4xx) that names its own target is shown there; other failures are said aloud.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { xhr } = event.detail;
    if (xhr.status >= 400 && xhr.status < 500 && xhr.getResponseHeader("HX-Retarget")) {
      event.detail.shouldSwap = true;
      event.detail.isError = false;
    }
  });
  document.addEventListener("htmx:responseError", (event) => {
    if (event.defaultPrevented || event.target.closest?.("[data-own-errors]")) return;
    const { status } = event.detail.xhr;
    if (status === 404) say("This is no longer here. Reload the page.", "bad");
    else if (status === 403) say("Your role does not allow this, or you were logged out. Reload the page.", "bad");
    else say(`The server answered with an error (${status}). Nothing was changed here; try again.`, "bad");
  });
  document.addEventListener("htmx:sendError", (event) => {
    if (event.target.closest?.("[data-own-errors]")) return;
    say("No connection to the server. Try again in a moment.", "bad");
  });
  // After a log-in in another tab the page's token is old; the cookie has the valid one.
  document.addEventListener("htmx:configRequest", (event) => {
    const token = document.cookie.match(/(?:^|; )csrftoken=([^;]+)/)?.[1];
    if (event.detail.verb !== "get" && token) {
      event.detail.headers["X-CSRFToken"] = token;
      if (event.detail.parameters.csrfmiddlewaretoken) event.detail.parameters.csrfmiddlewaretoken = token;
    }
  });
  document.addEventListener("htmx:afterSettle", (event) => {
    makeScrollable(event.target.parentNode || document);
    nameKeys();
  });

  document.addEventListener("DOMContentLoaded", () => {
    showTheme();
    nameKeys();
    // Where tabs do not all fit, the one that is open does.
    for (const tab of document.querySelectorAll(".tabs [aria-current], .filters [aria-current]")) {
      tab.parentElement.scrollLeft = tab.offsetLeft - tab.parentElement.offsetLeft - 48;
    }
    makeScrollable(document);
  });
  let resizing;
  window.addEventListener("resize", () => {
    clearTimeout(resizing);
    resizing = setTimeout(() => makeScrollable(document), 200);
  });

  window.laurel = { isTyping, makeScrollable, say };
})();
