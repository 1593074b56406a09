// Judgements kept on this device until the server names them as done. What could not be sent when it
// was made is sent by the queue or the next task page, which say what became of it.
"use strict";

(() => {
  const DRAFT = "laurel-draft:";
  const DRAFT_DAYS = 14;

  const store = {
    key: (user, clientId) => `${DRAFT}${user}:${clientId}`,
    read(key) {
      try {
        return JSON.parse(localStorage.getItem(key));
      } catch {
        return null;
      }
    },
    write(key, value) {
      try {
        localStorage.setItem(key, JSON.stringify(value));
      } catch {
        // Storage is off or full: the page itself still holds the text.
      }
    },
    drop(key) {
      try {
        localStorage.removeItem(key);
      } catch {
        // As above.
      }
    },
    keys() {
      try {
        return Object.keys(localStorage).filter((key) => key.startsWith(DRAFT));
      } catch {
        return [];
      }
    },
  };

  function post(url, fields) {
    const token = document.cookie.match(/(?:^|; )csrftoken=([^;]+)/)?.[1] || "";
    return fetch(url, {
      method: "POST",
      body: new URLSearchParams(fields),
      headers: { "X-CSRFToken": token || document.querySelector("[name=csrfmiddlewaretoken]")?.value || "" },
    });
  }

  // Send what earlier pages could not, or say why not; ``inHand`` is the task page's own draft.
  async function sendLeftovers(inHand = null) {
    const place = document.getElementById("unsent");
    const mine = store.key(place.dataset.user, "");
    for (const key of store.keys()) {
      const draft = store.read(key);
      const old = !draft || Date.now() - draft.at > DRAFT_DAYS * 86_400_000;
      if (old) store.drop(key);
      if (old || !draft.pending || key === inHand || !key.startsWith(mine)) continue;
      const response = await post(draft.url, [...draft.fields, ["resend", "1"]]).catch(() => null);
      if (response?.status === 204) {
        store.drop(key);
        say(place, "good", "An earlier judgement that had not reached us is stored now.");
      } else if (response && !response.redirected && response.status >= 400 && response.status < 500 && response.status !== 429) {
        const reason = response.headers.get("Content-Type")?.startsWith("text/plain") ? await response.text() : "";
        store.write(key, { ...draft, pending: false });
        const typed = new Map(draft.fields);
        const words = ["comment", "correction"].map((name) => typed.get(name)).filter(Boolean).join(" / ");
        say(place, "warn", `An earlier judgement could not be stored. ${reason}${words ? ` You wrote: “${words}”` : ""}`);
      }
    }
  }

  function say(place, kind, text) {
    place.hidden = false;
    place.className = `notice notice-${kind}`;
    place.textContent = text;
  }

  Object.assign(window.laurel, { post, sendLeftovers, store });
  document.addEventListener("DOMContentLoaded", () => {
    if (!document.getElementById("task")) sendLeftovers();
  });
})();
