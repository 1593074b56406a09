// The task page: judge by keyboard, mouse or touch; nothing typed is lost, nothing is sent twice.
//
// The form's own fields are the truth (they work without this file). A copy of them stays in
// localStorage under the hand-out's client id until the server names that id as done.
"use strict";

(() => {
  const RETRY_SECONDS = [1, 2, 4, 8, 15, 30];
  const SLOW_MS = 1000; // so long, and a page that says nothing seems to be stuck
  const ORDINALS = ["1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th", "9th"];
  const { isTyping, makeScrollable, post, store } = window.laurel;

  let task = null; // what is on the page now
  let draftTimer;
  let slowTimer;
  let busy = false; // a post is under way, or waits to be sent again: keys and clicks do nothing

  // ---- the local copy

  const draftKey = () => store.key(task.user, task.clientId);

  function saveDraft(pending = false) {
    const fields = [...new FormData(task.form)].filter(([name]) => name !== "csrfmiddlewaretoken");
    store.write(draftKey(), { at: Date.now(), pending, url: task.form.action, fields });
  }

  function restoreDraft() {
    const draft = store.read(draftKey());
    if (!draft) return false;
    for (const [name, value] of draft.fields) {
      const field = task.form.elements[name];
      if (!field || ["slot", "token", "client_id", "response"].includes(name)) continue;
      if (field.type === "checkbox") field.checked = true;
      else field.value = value; // a RadioNodeList takes a value, too
    }
    task.earlierSeconds = Number(task.form.elements.seconds.value) || 0;
    return draft.pending;
  }

  // ---- what the reader sees and hears

  function announce(text) {
    const place = document.getElementById("task-live");
    if (place) place.textContent = text;
  }

  function notice(text, { kind = "bad", retry = false, next = false } = {}) {
    const place = document.getElementById("task-notice");
    place.replaceChildren();
    if (!text) return;
    const box = document.createElement("div");
    box.className = `notice notice-${kind}`;
    const line = document.createElement("p");
    line.textContent = text;
    box.append(line);
    if (retry) {
      const again = document.createElement("button");
      again.type = "button";
      again.className = "button button-small";
      again.textContent = "Try now";
      again.addEventListener("click", resend);
      box.append(again);
    }
    if (next) {
      const link = document.createElement("a");
      link.href = task.form.action;
      link.className = "button button-small";
      link.textContent = "Take the next task";
      box.append(link);
    }
    place.append(box);
  }

  // ---- ranking

  class Ranking {
    constructor(form) {
      this.cards = [...form.querySelectorAll(".response")];
      this.order = form.querySelector("#order");
      this.tieButton = form.querySelector("[data-act=tie]");
      this.backButton = form.querySelector("[data-act=back]");
      this.tie = false;
    }

    // From the fields, e.g. of a draft or of a judgement taken back.
    load() {
      const byRank = new Map();
      for (const card of this.cards) {
        const rank = Number(this.field(card).value);
        if (rank) byRank.set(rank, [...(byRank.get(rank) || []), card]);
      }
      this.groups = [...byRank.keys()].sort((a, b) => a - b).map((rank) => byRank.get(rank));
      this.show();
    }

    field(card) {
      return card.querySelector("select");
    }

    rankOf(card) {
      return this.groups.findIndex((group) => group.includes(card)) + 1;
    }

    get missing() {
      return this.cards.filter((card) => !this.rankOf(card));
    }

    place(card) {
      if (this.rankOf(card)) {
        this.groups = this.groups.map((group) => group.filter((each) => each !== card)).filter((group) => group.length);
        this.changed(`${card.dataset.letter} taken out.`);
        return;
      }
      if (this.tie && this.groups.length) this.groups.at(-1).push(card);
      else this.groups.push([card]);
      this.tie = false;
      const left = this.missing.length;
      this.changed(`${card.dataset.letter} ${ORDINALS[this.groups.length - 1]}. ${left ? `${left} left.` : "All placed."}`);
    }

    toggleTie() {
      if (!this.groups.length || !this.missing.length) {
        announce("A tie needs one answer placed and one still to place.");
        return;
      }
      this.tie = !this.tie;
      this.changed(this.tie ? "The next one ties with the last." : "No tie.");
    }

    back() {
      if (this.tie) {
        this.tie = false;
        this.changed("No tie.");
        return;
      }
      const last = this.groups.at(-1);
      if (!last) return;
      const card = last.pop();
      if (!last.length) this.groups.pop();
      this.changed(`${card.dataset.letter} taken back.`);
    }

    changed(said) {
      this.show();
      announce(said);
      touched();
    }

    show() {
      for (const card of this.cards) {
        const rank = this.rankOf(card);
        this.field(card).value = rank || "";
        card.classList.toggle("placed", Boolean(rank));
        card.querySelector(".place").setAttribute("aria-pressed", String(Boolean(rank)));
        card.querySelector(".rank").textContent = rank ? ORDINALS[rank - 1] : "";
      }
      if (this.groups.length) {
        const rest = this.missing.length ? (this.tie ? " = …" : " > …") : "";
        this.order.replaceChildren(...this.letters(), rest);
      } else {
        this.order.innerHTML = '<span class="muted">Best first: press a number or choose an answer</span>';
      }
      this.tieButton.setAttribute("aria-pressed", String(this.tie));
      this.tieButton.disabled = !this.groups.length || !this.missing.length;
      this.backButton.disabled = !this.groups.length;
    }

    // The order in letters that can be dragged, with what stands between them.
    letters() {
      return this.groups.flatMap((group, rank) =>
        group.flatMap((card, place) => {
          const letter = document.createElement("span");
          letter.className = "order-letter";
          letter.dataset.letter = card.dataset.letter;
          letter.textContent = card.dataset.letter;
          const before = place ? " = " : rank ? " > " : "";
          return before ? [before, letter] : [letter];
        }),
      );
    }

    named(letter) {
      return this.cards.find((card) => card.dataset.letter === letter);
    }

    // Put a card before or after the place of another, or into it; without another it comes first.
    move(card, how, other) {
      const groups = this.groups.map((group) => group.filter((each) => each !== card)).filter((group) => group.length);
      const at = groups.findIndex((group) => group.includes(other));
      if (how === "tie") groups[at].push(card);
      else groups.splice(how === "after" ? at + 1 : Math.max(at, 0), 0, [card]);
      this.groups = groups;
      this.tie = false;
      const left = this.missing.length;
      this.changed(`${card.dataset.letter} ${ORDINALS[this.rankOf(card) - 1]}${how === "tie" ? ", a tie" : ""}. ${left ? `${left} left.` : ""}`);
    }

    key(key) {
      const card = this.cards[Number(key) - 1];
      if (card) this.place(card);
      else if (key === "t") this.toggleTie();
      else if (key === "Backspace") this.back();
      else if (key === "ArrowLeft" || key === "ArrowRight") this.go(key === "ArrowRight" ? 1 : -1);
      else return false;
      return true;
    }

    go(step) {
      const now = this.cards.findIndex((card) => card.contains(document.activeElement));
      const next = now < 0 ? (step > 0 ? 0 : this.cards.length - 1) : (now + step + this.cards.length) % this.cards.length;
      this.cards[next].querySelector(".place").focus();
    }

    click(target) {
      const button = target.closest(".place");
      if (button) this.place(button.closest(".response"));
      else if (target.closest("[data-act=tie]")) this.toggleTie();
      else if (target.closest("[data-act=back]")) this.back();
      else {
        const card = cardUnder(target);
        if (card) this.place(card);
      }
    }

    problem() {
      const letters = this.missing.map((card) => card.dataset.letter);
      if (!letters.length) return "";
      const names = letters.length > 1 ? `${letters.slice(0, -1).join(", ")} and ${letters.at(-1)}` : letters[0];
      return `Place ${names} first.`;
    }
  }

  // Drag a letter along the order, or with the mouse an answer's head into it: on a letter is a tie,
  // beside one a place of its own. A finger on an answer scrolls, so it taps there and drags letters.
  const drag = {
    begin(event) {
      if (!(task?.kind instanceof Ranking) || busy || event.button || !event.isPrimary) return;
      const letter = event.target.closest(".order-letter");
      const head = event.pointerType === "touch" ? null : event.target.closest(".place");
      if (!letter && !head) return;
      const card = letter ? task.kind.named(letter.dataset.letter) : head.closest(".response");
      this.hold = { card, grip: letter || head, pointer: event.pointerId, x: event.clientX, y: event.clientY };
    },

    move(event) {
      const { hold } = this;
      if (event.pointerId !== hold?.pointer) return;
      if (!hold.moving && Math.hypot(event.clientX - hold.x, event.clientY - hold.y) < 6) return;
      if (!hold.moving) {
        hold.moving = true;
        hold.grip.setPointerCapture(hold.pointer);
        document.body.classList.add("is-dragging");
        hold.grip.classList.add("is-moving");
      }
      this.mark(this.spot(event.clientX, event.clientY));
    },

    // Where a drop would put it: {how, letter}, no letter while the order is empty, or null.
    spot(x, y) {
      const bar = task.form.querySelector(".task-bar").getBoundingClientRect();
      if (y < bar.top || y > bar.bottom) return null;
      const letters = [...task.kind.order.querySelectorAll(".order-letter:not(.is-moving)")].filter(
        (letter) => letter.dataset.letter !== this.hold.card.dataset.letter,
      );
      if (!letters.length) return { how: "before", letter: null };
      const away = (box) => Math.hypot(Math.max(box.left - x, 0, x - box.right), 4 * Math.max(box.top - y, 0, y - box.bottom));
      const boxes = letters.map((letter) => ({ letter, box: letter.getBoundingClientRect() }));
      const { letter, box } = boxes.reduce((best, each) => (away(each.box) < away(best.box) ? each : best));
      const group = task.kind.groups.find((each) => each.includes(task.kind.named(letter.dataset.letter)));
      const others = group.filter((card) => card !== this.hold.card).map((card) => card.dataset.letter);
      const part = (x - box.left) / box.width;
      if (part < 0.25 && others[0] === letter.dataset.letter) return { how: "before", letter };
      if (part > 0.75 && others.at(-1) === letter.dataset.letter) return { how: "after", letter };
      return { how: "tie", letter };
    },

    mark(spot) {
      for (const letter of document.querySelectorAll("[data-drop]")) delete letter.dataset.drop;
      if (spot?.letter) spot.letter.dataset.drop = spot.how;
    },

    end(event) {
      const { hold } = this;
      if (event.pointerId !== hold?.pointer) return;
      const spot = hold.moving && event.type === "pointerup" && !busy && task ? this.spot(event.clientX, event.clientY) : null;
      this.cancel();
      // The click that ends a drag is none.
      if (hold.moving) this.endedAt = event.timeStamp;
      if (spot) task.kind.move(hold.card, spot.how, spot.letter && task.kind.named(spot.letter.dataset.letter));
    },

    cancel() {
      this.mark(null);
      this.hold?.grip.classList.remove("is-moving");
      document.body.classList.remove("is-dragging");
      this.hold = null;
    },
  };

  // ---- pairwise

  class Pairwise {
    constructor(form) {
      this.form = form;
      this.cards = [...form.querySelectorAll(".response")];
    }

    load() {
      this.show();
    }

    choose(value) {
      const { choice, strength } = this.form.elements;
      const isWinner = value !== "tie" && value !== "both_bad";
      if (choice.value === value && isWinner) {
        const steps = ["", "1", "2", "3"];
        strength.value = steps[(steps.indexOf(strength.value) + 1) % steps.length];
      } else {
        choice.value = value;
        strength.value = "";
      }
      this.changed();
    }

    changed() {
      this.show();
      const chosen = this.form.querySelector("[name=choice]:checked");
      const strength = this.form.querySelector("[name=strength]:checked");
      announce(`${[chosen, strength].map((input) => input?.dataset.said).filter(Boolean).join(", ")}.`);
      touched();
    }

    show() {
      const { choice, strength } = this.form.elements;
      const index = this.cards.findIndex((card) => card.dataset.response === choice.value);
      this.cards.forEach((card, each) => card.classList.toggle("placed", each === index));
      if (index < 0) strength.value = "";
      // Always in its place: what comes and goes would move the choices from under the pointer.
      this.form.querySelector(".strength").disabled = index < 0;
    }

    key(key) {
      const card = { 1: this.cards[0], ArrowLeft: this.cards[0], 2: this.cards[1], ArrowRight: this.cards[1] }[key];
      if (card) this.choose(card.dataset.response);
      else if (key === "0" || key === "t") this.choose("tie");
      else if (key === "b") this.choose("both_bad");
      else return false;
      return true;
    }

    click(target) {
      const card = cardUnder(target);
      if (card && this.form.elements.choice.value !== card.dataset.response) this.choose(card.dataset.response);
    }

    problem() {
      return this.form.elements.choice.value ? "" : "Choose the better answer, a tie, or both bad first.";
    }
  }

  // ---- thumbs

  class Thumbs {
    constructor(form) {
      this.form = form;
    }

    load() {}

    choose(value) {
      this.form.elements.thumb.value = value;
      this.changed();
    }

    changed() {
      announce(this.form.elements.thumb.value === "1" ? "Good." : "Bad.");
      touched();
    }

    key(key) {
      const scrolling = document.activeElement?.matches(".scrolls, pre");
      if (scrolling && key.startsWith("Arrow")) return false;
      if (key === "1" || key === "ArrowUp") this.choose("1");
      else if (key === "2" || key === "ArrowDown") this.choose("-1");
      else return false;
      return true;
    }

    click() {}

    problem() {
      return this.form.elements.thumb.value ? "" : "Choose good or bad first.";
    }
  }

  // ---- nothing but scales: the extras ask for everything

  class Rating {
    load() {}

    changed() {}

    key() {
      return false;
    }

    click() {}

    problem() {
      return "";
    }
  }

  const KINDS = { ranking: Ranking, pairwise: Pairwise, thumbs: Thumbs, rating: Rating };

  // The card that a click means: not a link, not the end of marking text.
  function cardUnder(target) {
    if (target.closest("a, button, input, select, textarea, summary, label")) return null;
    if (!window.getSelection().isCollapsed) return null;
    return target.closest(".response");
  }

  // ---- a task arrives

  function open({ arrived = false } = {}) {
    const element = document.getElementById("task");
    clearTimeout(draftTimer);
    clearTimeout(slowTimer);
    clearTimeout(task?.retryTimer);
    clearInterval(task?.heartbeat);
    task = null;
    busy = false;
    if (element && "slot" in element.dataset) {
      const { kind, slot, token, clientId, user, leaseSeconds, renewUrl } = element.dataset;
      const form = element.querySelector("#task-form");
      form.noValidate = true; // our sentences name what is missing; hidden selects cannot
      task = { element, form, slot, token, clientId, user, renewUrl, retries: 0, earlierSeconds: 0, shownAt: Date.now(), seenSeconds: 0 };
      task.kind = new KINDS[kind](form);
      task.extras = new window.laurel.Extras(form, { announce, touched, alone: kind === "rating" });
      const pending = restoreDraft();
      task.kind.load();
      task.extras.load();
      task.renewEvery = (Number(leaseSeconds) / 3) * 1000;
      task.renewedAt = Date.now();
      task.heartbeat = setInterval(renew, Math.min(task.renewEvery, 60_000));
      if (pending) form.requestSubmit();
    }
    if (arrived) {
      window.scrollTo(0, 0);
      document.getElementById("task-title")?.focus({ preventScroll: true });
      const title = document.getElementById("task-title")?.textContent || "";
      const progress = document.getElementById("task-progress")?.textContent.trim() || "";
      announce(`${element.dataset.said} ${task ? "Next task" : ""} ${title}. ${progress}`);
    }
  }

  function touched() {
    if (!task) return;
    if (document.querySelector("#task-notice .notice-bad")) notice("");
    clearTimeout(draftTimer);
    draftTimer = setTimeout(() => task && !busy && saveDraft(), 150);
  }

  // Time in front of the reader, not in a hidden tab.
  function seconds() {
    const running = task.shownAt ? (Date.now() - task.shownAt) / 1000 : 0;
    return task.earlierSeconds + task.seenSeconds + running;
  }

  document.addEventListener("visibilitychange", () => {
    if (!task) return;
    if (document.hidden) {
      task.seenSeconds += task.shownAt ? (Date.now() - task.shownAt) / 1000 : 0;
      task.shownAt = 0;
      if (!busy && hasContent()) saveDraft();
    } else {
      task.shownAt = Date.now();
      renew();
    }
  });

  function hasContent() {
    return Boolean(store.read(draftKey()) || task.extras.words.length);
  }

  async function renew() {
    if (!task || document.hidden || task.lost || Date.now() - task.renewedAt < task.renewEvery) return;
    const mine = task;
    mine.renewedAt = Date.now();
    const ticket = { slot: mine.slot, token: mine.token, client_id: mine.clientId };
    const response = await post(mine.renewUrl, ticket).catch(() => null);
    if (response?.status === 409 && task === mine && !busy) {
      mine.lost = true;
      notice(`${await response.text()} What you typed stays here until you leave the page.`, { kind: "warn", next: true });
    }
  }

  // ---- sending

  function submit() {
    if (task && !busy) task.form.requestSubmit();
  }

  // Ahead of htmx: stop what is incomplete or under way.
  document.addEventListener(
    "submit",
    (event) => {
      const form = event.target;
      if (!form.closest("#task")) return;
      const stop = () => {
        event.preventDefault();
        event.stopImmediatePropagation();
      };
      if (busy && !task?.resending) return stop();
      if (form.id === "task-form") {
        const problem = task.kind.problem() || task.extras.problem();
        if (problem) {
          notice(problem);
          return stop();
        }
        task.extras.settle();
        form.elements.seconds.value = seconds().toFixed(1);
        saveDraft(true);
      }
      if (form.id === "undo-form" && task?.extras.words.length && !task.mayLeave) {
        task.mayLeave = true;
        notice("What you wrote on this task would stay behind. Undo once more to go back all the same.", { kind: "warn" });
        return stop();
      }
      busy = true;
    },
    true,
  );

  function resend() {
    if (!task) return;
    clearTimeout(task.retryTimer);
    task.resending = true;
    task.form.requestSubmit();
    task.resending = false;
  }

  // It would go out with the next task page; better that nobody leaves without knowing.
  window.addEventListener("beforeunload", (event) => {
    if (task?.retries) event.preventDefault();
  });
  window.addEventListener("online", () => task?.retryTimer && resend());

  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.target.closest?.("#task")) setSending(true);
  });

  function setSending(sending) {
    const element = document.getElementById("task");
    element?.setAttribute("aria-busy", String(sending));
    clearTimeout(slowTimer);
    if (sending && !task?.retries) slowTimer = setTimeout(() => notice("Still sending …", { kind: "quiet" }), SLOW_MS);
    for (const text of task?.form.querySelectorAll("textarea") || []) text.readOnly = sending;
  }

  document.addEventListener("htmx:afterRequest", (event) => {
    // Not detail.elt: after a swap the form is gone, and the event names its surviving parent.
    const form = event.detail.requestConfig?.elt;
    if (!["task-form", "skip-form", "undo-form"].includes(form?.id)) return;
    const { xhr } = event.detail;
    const done = xhr.getResponseHeader("X-Laurel-Done");
    if (done) {
      for (const key of store.keys()) if (key.endsWith(`:${done}`)) store.drop(key);
    }
    if (xhr.status >= 200 && xhr.status < 300) return; // the swap opens the next task
    const unsure = xhr.status === 0 || xhr.status === 429 || xhr.status >= 500;
    clearTimeout(slowTimer);
    if (unsure && form.id === "task-form" && task) {
      const wait = RETRY_SECONDS[Math.min(task.retries, RETRY_SECONDS.length - 1)];
      task.retries += 1;
      task.retryTimer = setTimeout(resend, wait * 1000);
      notice("Not sent yet, will try again. Your judgement is kept on this device.", { kind: "warn", retry: true });
      return; // still busy: the same answer goes out again under the same id
    }
    busy = false;
    setSending(false);
    document.getElementById("skip-dialog")?.hidePopover?.();
    if (form.id === "task-form" && task) saveDraft(false);
    if (unsure) notice("The server did not answer. Try again in a moment.");
    else if (!xhr.getResponseHeader("HX-Retarget")) notice(refusal(xhr.status));
  });

  function refusal(status) {
    if (status === 403) return "You were logged out, or logged in anew elsewhere. Reload the page: what you typed is kept.";
    if (status === 404) return "This campaign is no longer open to you. Ask its lead.";
    if (status === 413 || status === 400) return "The server did not take this. Shorten the comment and submit again.";
    return `The server answered with an error (${status}). Submit again.`;
  }

  // Only once htmx has taken hold of the new forms; a key before that would post them plainly.
  document.addEventListener("htmx:afterSettle", (event) => {
    if (event.detail.target?.id !== "task") return;
    open({ arrived: true });
    makeScrollable(document);
  });

  // ---- keys, clicks, typing

  function plainKey(event) {
    if (/^[0-9]$/.test(event.key)) return event.key;
    if (/^Digit[0-9]$/.test(event.code) && !event.shiftKey) return event.code.slice(5); // AZERTY
    if (event.key.length === 1 && !/[\x20-\x7e]/.test(event.key) && event.code.startsWith("Key")) {
      return event.code.slice(3).toLowerCase(); // Cyrillic, Greek, Arabic …
    }
    return event.key.length === 1 ? event.key.toLowerCase() : event.key;
  }

  function press(selector) {
    const button = document.querySelector(selector);
    if (button && !button.disabled) button.click();
    return Boolean(button);
  }

  // Enter then sends it, as in any form.
  function pickReason(dialog, number) {
    const reason = dialog.querySelectorAll("[name=reason]")[number - 1];
    if (!reason) return;
    reason.checked = true;
    reason.focus();
  }

  document.addEventListener("keydown", (event) => {
    const active = document.activeElement;
    if (event.key === "Escape" && drag.hold) return drag.cancel();
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter") {
      if (!document.querySelector("dialog:popover-open")) {
        event.preventDefault();
        if (!event.repeat) submit();
      }
      return;
    }
    if (event.key === "Escape" && task?.form.contains(active) && active.closest("textarea, select, .ask")) {
      active.blur();
      document.getElementById("task-title")?.focus({ preventScroll: true });
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(active)) return;
    const key = plainKey(event);
    const skipping = document.querySelector("#skip-dialog:popover-open");
    if (skipping && /^[1-9]$/.test(key)) return pickReason(skipping, Number(key));
    if (document.querySelector("dialog:popover-open, details.menu[open]")) return;
    if (active?.matches("input[type=radio]") && key.startsWith("Arrow")) return;
    if (busy || event.repeat) {
      // Held down or pressed while loading: never a second judgement by accident.
      if (/^[0-9]$|^Backspace$/.test(key)) event.preventDefault();
      return;
    }
    let used = true;
    if (key === "u") used = press("[form=undo-form]");
    else if (!task) used = false;
    else if (key === "s") document.getElementById("skip-dialog").showPopover();
    else if (key === "c") document.getElementById("comment")?.focus();
    else if (key === "i") document.getElementById("code-book")?.showPopover();
    else used = task.extras.key(key) || task.kind.key(key);
    if (used) event.preventDefault();
  });

  document.addEventListener("pointerdown", (event) => drag.begin(event));
  document.addEventListener("pointermove", (event) => drag.move(event));
  document.addEventListener("pointerup", (event) => drag.end(event));
  document.addEventListener("pointercancel", (event) => drag.end(event));
  document.addEventListener("click", (event) => {
    if (event.timeStamp - drag.endedAt < 50) return;
    if (task && !busy && task.form.contains(event.target)) task.kind.click(event.target);
  });
  document.addEventListener("input", (event) => {
    if (task?.form.contains(event.target)) touched();
  });
  document.addEventListener("change", (event) => {
    if (!task?.form.contains(event.target)) return;
    if (event.target.matches("[name=choice], [name=strength], [name=thumb]")) task.kind.changed();
    else touched();
  });

  document.addEventListener("DOMContentLoaded", () => {
    open();
    window.laurel.sendLeftovers(task && draftKey());
  });
})();
