// The chat: streams answers of one or two versions side by side, and sends what people say of them.
"use strict";

(() => {
  const chat = document.querySelector("[data-chat]");
  if (!chat) return;

  const form = chat.querySelector("#chat-form");
  const columns = chat.querySelector("[data-chat-columns]");
  const entry = form.querySelector("#text");
  const model = chat.querySelector("#model");
  const beside = chat.querySelector("#beside");
  const stopButton = form.querySelector("[data-chat-stop]");
  const sendButton = form.querySelector("button[type=submit]");
  const newButton = document.querySelector("[data-chat-new]");
  const turnTemplate = document.getElementById("chat-turn");
  const toolsTemplate = document.getElementById("chat-tools");

  // A lane is one conversation: its place on the page, its messages, and the request under way.
  let lanes = [makeLane(columns.querySelector("[data-chat-log]"), () => model.value)];

  function makeLane(log, pick) {
    return { log, pick, messages: [], stop: null };
  }

  function token() {
    return document.cookie.match(/(?:^|; )csrftoken=([^;]+)/)?.[1] ?? form.elements.csrfmiddlewaretoken.value;
  }

  function post(url, body, signal) {
    return fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRFToken": token() },
      body: JSON.stringify(body),
      signal,
    });
  }

  async function refusal(response) {
    if (response.redirected) return "You were logged out. Log in again in another tab, then send once more.";
    const body = await response.json().catch(() => null);
    return body?.error?.message ?? body?.message ?? `The server answered with an error (${response.status}). Try again.`;
  }

  function addTurn(lane, role, who, text) {
    const turn = turnTemplate.content.firstElementChild.cloneNode(true);
    turn.classList.add(`turn-${role}`);
    turn.querySelector(".turn-who").textContent = who;
    turn.querySelector(".prose").textContent = text;
    lane.log.append(turn);
    return turn;
  }

  function isAtEnd() {
    const page = document.documentElement;
    return page.scrollHeight - window.innerHeight - window.scrollY < 120;
  }

  function follow(wasAtEnd) {
    if (wasAtEnd) window.scrollTo({ top: document.documentElement.scrollHeight });
  }

  async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
      }
    }
  }

  async function answer(lane) {
    const turn = addTurn(lane, "assistant", lane.pick(), "");
    const prose = turn.querySelector(".prose");
    const started = performance.now();
    lane.stop = new AbortController();
    lane.log.setAttribute("aria-busy", "true");
    turn.classList.add("is-writing");
    showState();
    let text = "";
    let id = null;
    let facts = "";
    try {
      const system = chat.querySelector("#system").value.trim();
      const response = await post(
        chat.dataset.answerUrl,
        {
          model: lane.pick(),
          messages: system ? [{ role: "system", content: system }, ...lane.messages] : lane.messages,
          temperature: Number(chat.querySelector("#temperature").value),
          max_tokens: Number(chat.querySelector("#max_tokens").value),
        },
        lane.stop.signal,
      );
      const streams = response.headers.get("Content-Type")?.startsWith("text/event-stream");
      if (!response.ok || !streams) throw new Error(await refusal(response));
      for await (const chunk of events(response)) {
        if (chunk.error) throw new Error(chunk.error.message);
        id = chunk.id;
        turn.querySelector(".turn-who").textContent = chunk.model;
        const wasAtEnd = isAtEnd();
        text += chunk.choices?.[0]?.delta?.content ?? "";
        prose.textContent = text;
        follow(wasAtEnd);
        if (chunk.usage) facts = `${chunk.usage.completion_tokens} tokens, `;
      }
      facts += `${((performance.now() - started) / 1000).toFixed(1)} s`;
    } catch (error) {
      const stopped = error.name === "AbortError";
      const said = document.createElement("p");
      said.className = stopped ? "muted small" : "error";
      said.textContent = stopped ? "Stopped." : error instanceof TypeError ? "No connection to the server. Try again in a moment." : error.message;
      turn.append(said);
    } finally {
      lane.stop = null;
      lane.log.removeAttribute("aria-busy");
      turn.classList.remove("is-writing");
      if (text) lane.messages.push({ role: "assistant", content: text });
      if (!text && id) prose.textContent = "(empty answer)";
      addTools(lane, turn, id, facts);
      showState();
    }
  }

  function addTools(lane, turn, id, facts) {
    for (const old of lane.log.querySelectorAll("[data-again]")) old.remove(); // only the last can be redone
    const tools = toolsTemplate.content.firstElementChild.cloneNode(true);
    tools.querySelector("[data-facts]").textContent = facts;
    tools.querySelector("[data-again]").addEventListener("click", () => writeAgain(lane, turn));
    if (id) {
      tools.querySelector("[data-details]").href = chat.dataset.completionUrl.replace(/[0-]{36}/, id);
      wireFeedback(tools, id);
    } else {
      for (const part of tools.querySelectorAll("[data-thumb], [data-say], [data-details]")) part.remove();
    }
    turn.append(tools);
  }

  function writeAgain(lane, turn) {
    if (lane.stop) return;
    if (lane.messages.at(-1)?.role === "assistant") lane.messages.pop();
    turn.classList.add("is-replaced");
    turn.querySelector("[data-again]")?.remove();
    answer(lane);
  }

  function wireFeedback(tools, id) {
    const url = `/api/completions/${id}/feedback`;
    const said = tools.querySelector("[data-said]");
    const sayForm = tools.querySelector("[data-say-form]");
    const sayButton = tools.querySelector("[data-say]");

    async function send(body, thanks) {
      said.textContent = "";
      // The same id on a second try: a lost answer never makes it count twice.
      const message = { client_id: window.crypto?.randomUUID?.(), ...body };
      for (let attempt = 0; ; attempt += 1) {
        try {
          const response = await post(url, message);
          if (!response.ok) throw new Error(await refusal(response));
          said.textContent = thanks;
          return true;
        } catch (error) {
          if (error instanceof TypeError && message.client_id && attempt === 0) continue;
          said.textContent = error instanceof TypeError ? "No connection; it was not sent. Try again." : error.message;
          return false;
        }
      }
    }

    for (const button of tools.querySelectorAll("[data-thumb]")) {
      button.addEventListener("click", async () => {
        if (!(await send({ thumb: Number(button.dataset.thumb) }, "Kept. Thank you."))) return;
        for (const each of tools.querySelectorAll("[data-thumb]")) each.setAttribute("aria-pressed", String(each === button));
      });
    }
    sayButton.addEventListener("click", () => {
      sayForm.hidden = !sayForm.hidden;
      sayButton.setAttribute("aria-expanded", String(!sayForm.hidden));
      if (!sayForm.hidden) sayForm.elements.comment.focus();
    });
    sayForm.addEventListener("submit", async (event) => {
      event.preventDefault();
      const body = {
        comment: sayForm.elements.comment.value,
        correction: sayForm.elements.correction.value,
        complaint: sayForm.elements.complaint.checked,
      };
      if (!(await send(body, "Kept. Thank you."))) return;
      sayForm.reset();
      sayForm.hidden = true;
      sayButton.setAttribute("aria-expanded", "false");
    });
  }

  function showState() {
    const writing = lanes.some((lane) => lane.stop);
    stopButton.hidden = !writing;
    sendButton.disabled = writing;
    newButton.hidden = writing || lanes.every((lane) => !lane.log.childElementCount);
    model.disabled = beside.disabled = writing;
  }

  function setLanes() {
    const wanted = beside.value ? 2 : 1;
    if (lanes.length < wanted) {
      const log = lanes[0].log.cloneNode(false);
      log.setAttribute("aria-label", "Conversation beside it");
      columns.append(log);
      lanes.push(makeLane(log, () => beside.value));
    } else if (lanes.length > wanted) {
      lanes.pop().log.remove();
    }
    columns.classList.toggle("chat-two", wanted === 2);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = entry.value.trim();
    if (!text || lanes.some((lane) => lane.stop)) return;
    entry.value = "";
    for (const lane of lanes) {
      lane.messages.push({ role: "user", content: text });
      addTurn(lane, "user", "You", text);
      answer(lane);
    }
    follow(true);
    entry.focus();
  });
  entry.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  stopButton.addEventListener("click", () => lanes.forEach((lane) => lane.stop?.abort()));
  newButton.addEventListener("click", () => {
    for (const lane of lanes) {
      lane.messages = [];
      lane.log.replaceChildren();
    }
    showState();
    entry.focus();
  });
  beside.addEventListener("change", setLanes);

  // A page that came back from a form post already holds turns: go on from them.
  lanes[0].messages = JSON.parse(form.elements.history.value || "[]");
  setLanes();
  showState();
})();
