"use strict";
// The page keeps everything in this tab: nothing is read from the URL, nothing is sent before a button is pressed, and
// text of the model is only ever put in by textContent.

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "max_tokens", "top_k", "top_p", "min_p", "seed"];
const NEAR_END = 40;
const state = { task: "text", model: "", turns: [], text: "", key: "", abort: null, started: 0 };

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (name === "class") element.className = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function headers() {
  const found = { "Content-Type": "application/json" };
  if (state.key) found.Authorization = `Bearer ${state.key}`;
  return found;
}

function options() {
  const found = {};
  for (const name of NUMBERS) if ($(name).value !== "") found[name] = Number($(name).value);
  if ($("stop").value) found.stop = $("stop").value;
  if ($("regex").value) found.regex = $("regex").value;
  return found;
}

function keep() {
  sessionStorage.setItem("gptcli", JSON.stringify({ turns: state.turns, text: state.text, system: $("system").value }));
}

function say(text) { $("status").textContent = text; }
function complain(text) { $("problem").textContent = text; }

// ------------------------------------------------------------------------------------------------------ the server

async function ask(path, body, signal) {
  const request = { method: "POST", headers: headers(), body: JSON.stringify(body), signal };
  for (;;) {
    const response = await fetch(path, request);
    if (response.ok) return response;
    const problem = await response.json().catch(() => ({ error: { message: `status ${response.status}` } }));
    if (response.status === 401) {
      await askForKey();
      request.headers = headers();
    } else if (response.status === 429 || response.status === 503) {
      let seconds = Number(response.headers.get("retry-after") || 1);
      for (; seconds > 0; seconds--) {
        say(`${problem.error.message}; again in ${seconds} s`);
        await new Promise((done) => setTimeout(done, 1000));
        if (signal && signal.aborted) throw new DOMException("stopped", "AbortError");
      }
    } else throw new Error(problem.error.message);
  }
}

function askForKey() {
  return new Promise((done) => {
    $("key-dialog").showModal();
    $("key-dialog").addEventListener("close", () => { state.key = $("key").value; done(); }, { once: true });
  });
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += value;
    const parts = waiting.split("\n\n");
    waiting = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue;
      const content = part.slice(6);
      if (content === "[DONE]") return;
      const event = JSON.parse(content);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// -------------------------------------------------------------------------------------------------------- the text

// Plain text, with fenced code as <pre>.
function show(place, text) {
  place.replaceChildren();
  text.split("```").forEach((part, number) => {
    if (number % 2) place.append(make("pre", {}, part.replace(/^[\w+-]*\n/, "")));
    else if (part) place.append(document.createTextNode(part));
  });
}

function tokenButton(entry, article) {
  const probability = Math.exp(entry.logprob);
  const level = Math.min(4, Math.floor(probability * 5));
  const percent = `${(100 * probability).toFixed(1)} %`;
  const label = `${entry.token.trim() || "space"}, ${percent}`;
  const attributes = { type: "button", class: `token p${level}`, title: percent, "aria-label": label };
  const button = make("button", attributes, entry.token.startsWith("bytes:") ? "\u25a1" : entry.token);
  button.addEventListener("click", () => showLikeliest(entry, article, button));
  return button;
}

function showLikeliest(entry, article, button) {
  article.querySelector(".likeliest")?.remove();
  const box = make("div", { class: "likeliest", role: "group", "aria-label": "The likeliest tokens here" });
  for (const other of entry.top_logprobs) {
    const text = `${JSON.stringify(other.token)} ${(100 * Math.exp(other.logprob)).toFixed(1)} %`;
    box.append(make("button", { type: "button", on: { click: () => goOnFrom(article, button, other.token) } }, text));
  }
  article.append(box);
  box.querySelector("button")?.focus();
}

function goOnFrom(article, button, token) {
  const tokens = [...article.querySelectorAll(".token")];
  const before = tokens.slice(0, tokens.indexOf(button)).map((each) => each.textContent).join("");
  const number = Number(article.dataset.turn);
  if (state.task === "chat") {
    state.turns = state.turns.slice(0, number + 1);
    state.turns[number].content = before + token;
    drawTurns();
    write({ goesOn: true });
  } else {
    state.text = state.text.slice(0, Number(article.dataset.from)) + before + token;
    drawText();
    write({ goesOn: true });
  }
}

function atEnd() {
  const log = $("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END;
}

function follow(was) {
  if (was) $("log").scrollTop = $("log").scrollHeight;
  $("newest").hidden = atEnd();
}

function drawTurns() {
  $("log").replaceChildren(...state.turns.map((turn, number) => {
    const article = make("article", { class: turn.role, "data-turn": number });
    article.append(make("h2", {}, turn.role === "user" ? "You" : "Model"));
    const text = make("div", { class: "text" });
    show(text, turn.content);
    article.append(text);
    const bar = make("div", { class: "bar" });
    if (turn.role === "user") bar.append(make("button", { type: "button", on: { click: () => edit(number) } }, "Edit"));
    else bar.append(make("button", { type: "button", on: { click: () => again(number) } }, "Regenerate"));
    article.append(bar);
    return article;
  }));
  $("continue").hidden = state.turns.at(-1)?.role !== "assistant";
  keep();
}

function drawText() {
  const text = make("div", { class: "text" });
  show(text, state.text);
  $("log").replaceChildren(make("article", {}, make("h2", {}, "Text"), text));
  $("continue").hidden = !state.text;
  keep();
}

function edit(number) {
  $("box").value = state.turns[number].content;
  state.turns = state.turns.slice(0, number);
  drawTurns();
  $("box").focus();
}

function again(number) {
  state.turns = state.turns.slice(0, number);
  drawTurns();
  write({});
}

// ------------------------------------------------------------------------------------------------------- the writing

function body(goesOn) {
  const found = { ...options(), stream: true, stream_options: { include_usage: true } };
  const wants = $("probabilities").checked;
  if (state.task === "chat") {
    const system = $("system").value.trim();
    found.messages = [...(system ? [{ role: "system", content: system }] : []), ...state.turns];
    if (!goesOn && found.messages.at(-1)?.role === "assistant") found.messages.pop();
    if (wants) Object.assign(found, { logprobs: true, top_logprobs: 10 });
  } else {
    Object.assign(found, { prompt: state.text, truncate: "left" });
    if (wants) found.logprobs = 10;
  }
  return found;
}

// Entries of either shape as {token, logprob, top_logprobs}.
function entries(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) return logprobs.content;
  return logprobs.tokens.map((token, number) => ({
    token,
    logprob: logprobs.token_logprobs[number],
    top_logprobs: Object.entries(logprobs.top_logprobs[number] || {}).map(([name, value]) => ({ token: name, logprob: value })),
  }));
}

async function write({ goesOn = false }) {
  if (state.abort) return;
  complain("");
  const chat = state.task === "chat";
  const path = chat ? "v1/chat/completions" : "v1/completions";
  const request = body(goesOn);
  let answer;
  if (chat) {
    if (!goesOn) state.turns.push({ role: "assistant", content: "" });
    answer = state.turns.at(-1);
    drawTurns();
  } else drawText();
  const article = $("log").lastElementChild;
  article.dataset.from = state.text.length;
  const place = article.querySelector(".text");
  const tail = document.createTextNode("");
  if (!place.lastChild || place.lastChild.nodeName === "PRE") place.append(tail);
  const node = place.lastChild.nodeType === Node.TEXT_NODE ? place.lastChild : tail;
  if (!node.parentNode) place.append(node);
  state.abort = new AbortController();
  setBusy(true);
  say("writing");
  const began = performance.now();
  let usage = null, finish = "", dropped = 0, facts = [];
  try {
    const response = await ask(path, request, state.abort.signal);
    for await (const event of events(response)) {
      if (event.usage) { usage = event.usage; dropped = event.dropped_turns || 0; }
      const choice = event.choices[0];
      if (!choice) continue;
      const text = chat ? choice.delta.content || "" : choice.text;
      facts = facts.concat(entries(choice.logprobs));
      if (text) {
        const was = atEnd();
        node.appendData(text);
        if (chat) answer.content += text; else state.text += text;
        follow(was);
      }
      finish = choice.finish_reason || finish;
    }
  } catch (error) {
    if (error.name === "AbortError") finish = "stopped";
    else complain(error.message);
  }
  state.abort = null;
  setBusy(false);
  const seconds = (performance.now() - began) / 1000;
  if (chat) drawTurns(); else drawText();
  const last = $("log").lastElementChild;
  if (facts.length) {
    const shown = last.querySelector(".text");
    last.dataset.from = state.text.length - facts.map((entry) => entry.token).join("").length;
    if (chat && !goesOn) shown.replaceChildren(...facts.map((entry) => tokenButton(entry, last)));
    else shown.append(make("p", {}, ...facts.map((entry) => tokenButton(entry, last))));
  }
  const count = usage ? usage.completion_tokens : 0;
  if (usage) {
    const cached = usage.prompt_tokens_details.cached_tokens;
    const parts = [`${count} tokens, ${(count / seconds).toFixed(1)} a second`, `prompt ${usage.prompt_tokens} (${cached} cached)`];
    if (finish === "length") parts.push("ended by its length");
    if (dropped) parts.push(`${dropped} earlier turns did not fit`);
    last.append(make("p", { class: "facts" }, parts.join("; ")));
  }
  say(finish === "stopped" ? "stopped" : `answer complete, ${count} tokens`);
}

async function classify(text) {
  complain("");
  setBusy(true);
  try {
    const response = await ask("v1/classify", { input: text });
    const found = await response.json();
    const article = make("article", {}, make("h2", {}, text.slice(0, 200)));
    found.labels.forEach((label, number) => {
      const share = found.data[0].probs[number];
      const name = `${label}: ${(100 * share).toFixed(1)} %`;
      article.append(make("label", {}, name, make("meter", { min: 0, max: 1, value: share, "aria-label": name })));
    });
    $("log").prepend(article);
    say(`it is ${found.data[0].label}`);
  } catch (error) { complain(error.message); }
  setBusy(false);
}

function setBusy(busy) {
  $("stop-writing").hidden = !busy || state.task === "classify";
  $("send").disabled = busy;
}

// ------------------------------------------------------------------------------------------------------ the controls

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("box").value;
  if (state.abort) return;
  if (state.task === "classify") { if (text.trim()) classify(text); return; }
  if (state.task === "chat") {
    if (!text.trim()) return;
    state.turns.push({ role: "user", content: text });
    $("box").value = "";
    write({});
    return;
  }
  state.text += text;
  $("box").value = "";
  write({ goesOn: true });
});

$("box").addEventListener("keydown", (event) => {
  const touch = matchMedia("(pointer: coarse)").matches;
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !touch) {
    event.preventDefault();
    $("form").requestSubmit();
  } else if (event.key === "ArrowUp" && !$("box").value && state.task === "chat") {
    const last = state.turns.findLastIndex((turn) => turn.role === "user");
    if (last >= 0) { event.preventDefault(); edit(last); }
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.abort) state.abort.abort();
  if (event.key === "ArrowUp" && event.altKey) $("log").focus();
});

$("stop-writing").addEventListener("click", () => state.abort?.abort());
$("continue").addEventListener("click", () => write({ goesOn: true }));
$("newest").addEventListener("click", () => follow(true));
$("log").addEventListener("scroll", () => { $("newest").hidden = atEnd(); });
$("clear").addEventListener("click", () => {
  state.turns = [];
  state.text = "";
  $("log").replaceChildren();
  keep();
});

$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

$("save").addEventListener("click", () => {
  const system = $("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...state.turns];
  const row = state.task === "chat" ? { messages } : { text: state.text };
  const address = URL.createObjectURL(new Blob([JSON.stringify(row) + "\n"], { type: "application/jsonl" }));
  make("a", { href: address, download: "conversation.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
});

$("load").addEventListener("change", async () => {
  const [file] = $("load").files;
  if (!file) return;
  try {
    const lines = (await file.text()).split("\n").filter((line) => line.trim());
    const row = JSON.parse(lines.at(-1));
    if (state.task === "chat") {
      const messages = row.messages.filter((message) => typeof message.content === "string");
      $("system").value = messages[0]?.role === "system" ? messages.shift().content : "";
      state.turns = messages;
      drawTurns();
    } else { state.text = String(row.text); drawText(); }
  } catch (error) { complain(`this is no row of a conversation: ${error.message}`); }
  $("load").value = "";
});

$("curl").addEventListener("click", async () => {
  const path = state.task === "chat" ? "v1/chat/completions" : "v1/completions";
  const content = JSON.stringify({ ...body(true), stream: false, stream_options: undefined }).replaceAll("'", "'\\''");
  const key = state.key ? " -H \"Authorization: Bearer $KEY\"" : "";
  await navigator.clipboard.writeText(`curl ${new URL(path, location.href)}${key} -H 'Content-Type: application/json' -d '${content}'`);
  say("copied");
});

async function begin() {
  let facts;
  for (;;) {
    const response = await fetch("v1/models", { headers: headers() }).catch(() => null);
    if (response?.ok) { facts = (await response.json()).data[0]; break; }
    if (response?.status === 401) { await askForKey(); continue; }
    say("the model is loading");
    await new Promise((done) => setTimeout(done, 1000));
  }
  say("");
  Object.assign(state, { task: facts.task, model: facts.id });
  document.title = $("name").textContent = facts.id;
  $("facts").textContent = `${facts.parameters.toLocaleString("en")} parameters, context of ${facts.context_length} tokens`;
  $("temperature").value = facts.defaults.temperature;
  $("max_tokens").placeholder = facts.task === "chat" ? "what fits" : facts.defaults.max_tokens;
  for (const element of document.querySelectorAll("[data-for]")) element.hidden = element.dataset.for !== facts.task;
  $("options").hidden = facts.task === "classify";
  $("box-label").textContent = { chat: "Message", text: "Text to go on from", classify: "Text to label" }[facts.task];
  $("send").textContent = { chat: "Send", text: "Write on", classify: "Label" }[facts.task];
  try {
    const kept = JSON.parse(sessionStorage.getItem("gptcli") || "{}");
    Object.assign(state, { turns: kept.turns || [], text: kept.text || "" });
    $("system").value = kept.system || "";
  } catch { sessionStorage.removeItem("gptcli"); }
  if (facts.task === "chat") drawTurns();
  else if (facts.task === "text" && state.text) drawText();
}

begin();
