// What a campaign asks beside its main judgement, by keyboard: scales, safety, reasons, and a
// correction written from an answer with what it changes shown word by word.
"use strict";

(() => {
  // Texts further apart are compared by lines: more would be felt while typing.
  const MOST_EDITS = 1500;
  const WORDS = /\s+|[\p{L}\p{M}\p{N}_'’]+|[^\s\p{L}\p{M}\p{N}_'’]/gu;
  const LINES = /[^\n]*\n|[^\n]+$/g;

  // Runs of {kind: "same" | "del" | "ins", text} that lead from one text to the other.
  function changes(before, after) {
    const cut = (pattern) => [before.match(pattern) || [], after.match(pattern) || []];
    const steps = edits(...cut(WORDS)) || edits(...cut(LINES)) || [["del", before], ["ins", after]];
    const runs = [];
    for (const [kind, text] of steps) {
      if (runs.at(-1)?.kind === kind) runs.at(-1).text += text;
      else if (text) runs.push({ kind, text });
    }
    return runs;
  }

  // The shortest way from one list to the other as [kind, text] steps (Myers 1986); null if it takes
  // more than ``MOST_EDITS``. ``reached[k]`` is how far into ``old`` the diagonal k has come.
  function edits(old, now) {
    const most = Math.min(old.length + now.length, MOST_EDITS);
    const reached = new Int32Array(2 * most + 3);
    const middle = most + 1;
    const before = [];
    for (let made = 0; made <= most; made += 1) {
      before.push(reached.slice(middle - made - 1, middle + made + 2));
      for (let k = -made; k <= made; k += 2) {
        const down = k === -made || (k !== made && reached[middle + k - 1] < reached[middle + k + 1]);
        let x = down ? reached[middle + k + 1] : reached[middle + k - 1] + 1;
        while (x < old.length && x - k < now.length && old[x] === now[x - k]) x += 1;
        reached[middle + k] = x;
        if (x >= old.length && x - k >= now.length) return retrace(old, now, before);
      }
    }
    return null;
  }

  function retrace(old, now, before) {
    const steps = [];
    let [x, y] = [old.length, now.length];
    for (let made = before.length - 1; made >= 0; made -= 1) {
      const reached = (k) => before[made][made + 1 + k];
      const k = x - y;
      const down = k === -made || (k !== made && reached(k - 1) < reached(k + 1));
      const fromX = made ? reached(down ? k + 1 : k - 1) : 0;
      const fromY = made ? fromX - (down ? k + 1 : k - 1) : 0;
      while (x > fromX && y > fromY) {
        x -= 1;
        y -= 1;
        steps.push(["same", old[x]]);
      }
      if (made) steps.push(down ? ["ins", now[fromY]] : ["del", old[fromX]]);
      [x, y] = [fromX, fromY];
    }
    return steps.reverse();
  }

  const wordsIn = (runs, kind) =>
    runs.filter((run) => run.kind === kind).reduce((sum, run) => sum + (run.text.match(/[\p{L}\p{M}\p{N}_'’]+/gu) || []).length, 0);

  class Correction {
    constructor(form) {
      this.form = form;
      this.box = form.querySelector("#correction-box");
      this.text = this.box.querySelector("#correction");
      this.pick = this.box.querySelector("#corrected");
      this.was = "";
      this.text.addEventListener("input", () => this.later());
      this.text.addEventListener("focus", () => this.begin());
      this.pick?.addEventListener("change", () => this.begin());
    }

    get original() {
      const id = this.form.elements.corrected.value;
      const raw = id && this.form.querySelector(`#raw-${CSS.escape(id)}`);
      return raw ? JSON.parse(raw.textContent).replace(/\r\n?/g, "\n") : "";
    }

    get isUnchanged() {
      return !this.text.value.trim() || this.text.value === this.original;
    }

    // An answer is the start of a text that nobody has written on yet.
    begin() {
      const { original } = this;
      if (!this.text.value.trim() || this.text.value === this.was) {
        this.text.value = original;
        this.text.setSelectionRange(0, 0);
      }
      this.was = original;
      this.show();
    }

    focus() {
      const place = this.pick && !this.pick.value ? this.pick : this.text;
      place.focus();
      this.box.scrollIntoView({ block: "nearest" });
    }

    later() {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.show(), 80);
    }

    show() {
      const place = this.box.querySelector("#changes");
      const said = this.box.querySelector("#changes-said");
      if (this.isUnchanged || !this.original) {
        place.innerHTML = '<span class="muted">Nothing yet.</span>';
        said.textContent = "";
        return;
      }
      const runs = changes(this.original, this.text.value);
      place.replaceChildren(
        ...runs.map((run) => {
          if (run.kind === "same") return document.createTextNode(run.text);
          const part = document.createElement(run.kind);
          part.textContent = run.text;
          return part;
        }),
      );
      said.textContent = `words added: ${wordsIn(runs, "ins")}, removed: ${wordsIn(runs, "del")}`;
      const first = place.querySelector("ins, del");
      if (first) place.scrollTop = Math.max(0, first.offsetTop - place.offsetTop - 48);
      window.laurel.makeScrollable(this.box);
    }

    problem() {
      if (!this.isUnchanged && !this.form.elements.corrected.value) {
        this.pick.focus();
        return "Say which answer your version starts from.";
      }
      if (this.box.dataset.wanted !== "required" || !this.isUnchanged) return "";
      this.focus();
      return "Write what you would have liked first.";
    }
  }

  class Extras {
    constructor(form, { announce, touched, alone }) {
      Object.assign(this, { form, announce, touched, alone });
      this.asks = [...form.querySelectorAll("fieldset.ask:not([data-many])")];
      this.reasons = form.querySelector("fieldset.ask[data-many]");
      this.correction = form.querySelector("#correction-box") && new Correction(form);
    }

    load() {
      if (this.correction) this.correction.was = this.correction.original;
      this.correction?.show();
    }

    isOpen(ask) {
      return !ask.querySelector(":checked");
    }

    name(ask) {
      return ask.querySelector("legend").textContent.trim();
    }

    // The next one that is open, after the one in hand and around.
    next(from) {
      const at = this.asks.indexOf(from);
      const turned = [...this.asks.slice(at + 1), ...this.asks.slice(0, at + 1)];
      return turned.find((ask) => this.isOpen(ask));
    }

    go(ask) {
      (ask.querySelector(":checked") || ask.querySelector("input")).focus({ preventScroll: true });
      ask.scrollIntoView({ block: "nearest" });
    }

    key(key) {
      const here = document.activeElement?.closest("fieldset.ask");
      if (/^[1-9]$/.test(key)) return this.digit(Number(key), here || (this.alone ? this.next() : null));
      if (key === "r" && this.asks.length) this.go(this.next(here) || this.asks[(this.asks.indexOf(here) + 1) % this.asks.length]);
      else if (key === "w" && this.reasons) this.go(this.reasons);
      else if (key === "e" && this.correction) this.correction.focus();
      else return false;
      return true;
    }

    digit(number, ask) {
      const input = ask?.querySelectorAll("input")[number - 1];
      if (!input) return Boolean(ask);
      input.checked = input.type === "radio" || !input.checked;
      const label = input.labels[0].textContent.trim();
      const following = input.type === "radio" && this.next(ask);
      this.go(following || ask);
      const said = input.checked ? label : `not ${label}`;
      this.announce(`${this.name(ask)}: ${said}.${input.type === "radio" && !following ? " All rated." : ""}`);
      this.touched();
      return true;
    }

    problem() {
      const open = this.next();
      if (open) {
        this.go(open);
        return `Choose for ${this.name(open)} first.`;
      }
      const comment = this.form.elements.comment;
      if (comment?.required && !comment.value.trim()) {
        comment.focus();
        return "Say why in a comment first.";
      }
      return this.correction?.problem() || "";
    }

    // What nobody changed is no correction.
    settle() {
      if (this.correction?.isUnchanged) this.correction.text.value = "";
    }

    // What would be lost on leaving: words of one's own.
    get words() {
      const correction = this.correction && !this.correction.isUnchanged ? this.correction.text.value : "";
      return [this.form.elements.comment?.value.trim() || "", correction].filter(Boolean);
    }
  }

  Object.assign(window.laurel, { Extras, changes });
})();
