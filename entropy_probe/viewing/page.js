"use strict";
(() => {
  const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const VALUE = new Uint8Array(128);
  [...DIGITS].forEach((digit, value) => { VALUE[digit.charCodeAt(0)] = value; });
  const [VALID, FORK, CONTROL, CAPTURED, SPECIAL, PROMPT] = [1, 2, 4, 8, 16, 32];
  const METRICS = ["entropy", "logprob", "rank", "reward"];
  const UNKNOWN_RANK = 64 ** 3 - 1;

  const root = document.documentElement;
  const one = (selector, inside = document) => inside.querySelector(selector);
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const make = (tag, kind, text) => {
    const element = document.createElement(tag);
    if (kind) element.className = kind;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const lazily = (compute) => {
    let made;
    return () => (made ??= compute());
  };

  // ---- the numbers: strings of base-64 digits, read in place ----
  const shared = lazily(() => JSON.parse(one("#shared").textContent));
  const blocks = all(".block").map((script) => lazily(() => JSON.parse(script.textContent)));
  const read = (column, width, index) => {
    let value = 0;
    for (let i = index * width; i < (index + 1) * width; i++) {
      value = value * 64 + VALUE[column.charCodeAt(i)];
    }
    return value;
  };
  const word = (place) => {
    if (!place) return { text: "▒", bytes: "not on this page", id: "hidden" };
    const entry = shared().pool[place - 1];
    const text = typeof entry === "string" ? entry : entry[0];
    return { text, id: shared().ids[place - 1], bytes: typeof entry === "string" ? hex(text) : entry[1] };
  };
  const hex = (text) => [...new TextEncoder().encode(text.replaceAll("·", " "))]
    .map((byte) => byte.toString(16).padStart(2, "0").toUpperCase()).join(" ");
  const percent = (thousandths) => {
    const share = 100 * Math.exp(-thousandths / 1000);
    if (share > 99.95 && thousandths > 0) return ">99.9%";
    return share >= 0.05 ? `${share.toFixed(1)}%` : "<0.1%";
  };
  const nats = (thousandths) => (thousandths / 1000).toFixed(3);
  const level = (metric, value) => shared().cuts[metric].filter((cut) => value >= cut).length;

  // ---- from an element to its token and back ----
  const strips = all(".strip");
  const linesOf = new Map(strips.map((strip) => [strip, all(".l", strip)]));
  const forks = all(".strip mark");
  const tokenAt = (target) => {
    const element = target instanceof Element ? target.closest(".l > i, .l > mark") : null;
    return element;
  };
  const locate = (element) => {
    const line = element.parentElement;
    const strip = line.parentElement;
    const data = blocks[Number(strip.dataset.s)]();
    const offset = [...line.children].indexOf(element);
    return { strip, data, index: Number(line.dataset.p) + offset - data.start };
  };
  const elementAt = (strip, position) => {
    const lines = linesOf.get(strip);
    let line = lines.length - 1;
    while (line > 0 && Number(lines[line].dataset.p) > position) line--;
    return lines[line]?.children[position - Number(lines[line].dataset.p)];
  };
  const stripOf = (number) => strips.find((strip) => Number(strip.dataset.s) === number);
  const neighbour = (element, step) => {
    const { strip, data, index } = locate(element);
    if (index + step >= 0 && index + step < data.flags.length) {
      return elementAt(strip, data.start + index + step);
    }
    const other = strips[strips.indexOf(strip) + step];
    const lines = other && linesOf.get(other);
    if (!lines?.length) return undefined;
    return step > 0 ? lines[0].firstElementChild : lines.at(-1).lastElementChild;
  };

  // ---- what is known of one token ----
  const facts = (element) => {
    const { data, index } = locate(element);
    const width = shared().width;
    const flags = read(data.flags, 1, index);
    const slot = index - data.first;
    const known = (flags & VALID) && slot >= 0 && slot < data.entropy.length / 3;
    const token = read(data.token, width, index);
    const others = [];
    for (let j = 0; known && j < data.k; j++) {
      const place = read(data.other, width, slot * data.k + j);
      if (place) others.push({ place, logprob: read(data.others, 3, slot * data.k + j) });
    }
    return {
      flags, known, token, others, row: data.row, position: data.start + index,
      entropy: known ? read(data.entropy, 3, slot) : 0,
      logprob: known ? read(data.logprob, 3, slot) : 0,
      rank: known ? read(data.rank, 3, slot) : 0,
    };
  };

  // ---- the panel ----
  const panel = one("#detail");
  const hint = [...panel.childNodes];
  const kindOf = (fact, element) => {
    const kinds = [];
    if (fact.flags & FORK) kinds.push(`fork ${forks.indexOf(element) + 1} of ${forks.length}`);
    if (fact.flags & SPECIAL) kinds.push("special token");
    if (fact.flags & PROMPT) kinds.push("prompt");
    if (fact.flags & CONTROL) kinds.push("control: residual kept for comparison");
    else if (fact.flags & CAPTURED) kinds.push("residual kept");
    for (const [name, role] of Object.entries(shared().roles))
      if (element.classList.contains(name)) kinds.push(role);
    if (element.classList.contains("u")) kinds.push("part of a split character");
    return kinds.join(" · ");
  };
  const numbers = (fact) => {
    const list = make("dl", "numbers");
    const pairs = [["entropy, nats", nats(fact.entropy)], ["probability", percent(fact.logprob)],
      ["rank, 0 = top", fact.rank < UNKNOWN_RANK ? String(fact.rank) : "unknown"]];
    for (const [label, value] of pairs) {
      const pair = make("div");
      pair.append(make("dt", "", label), make("dd", "", value));
      list.append(pair);
    }
    return list;
  };
  const alternatives = (fact) => {
    const list = make("ol", "others");
    list.setAttribute("aria-label", "Most probable tokens here");
    const entries = [...fact.others];
    if (!entries.some((entry) => entry.place === fact.token)) {
      entries.push({ place: fact.token, logprob: fact.logprob });
    }
    let left = 1;
    for (const { place, logprob } of entries) {
      const share = Math.exp(-logprob / 1000);
      left -= share;
      const item = make("li", place === fact.token ? "drawn" : "");
      item.style.setProperty("--share", `${(100 * share).toFixed(2)}%`);
      item.append(make("span", "", word(place).text), make("span", "", percent(logprob)));
      list.append(item);
    }
    const rest = make("li", "rest");
    rest.append(make("span", "", "all others"), make("span", "", `${(100 * Math.max(left, 0)).toFixed(1)}%`));
    list.append(rest);
    return list;
  };
  const describe = (element) => {
    const fact = facts(element);
    const { text, id, bytes } = word(fact.token);
    const name = shared().names[fact.row].join(".");
    const where = make("p", "where", `rollout ${name}, position ${fact.position} · id ${id} · bytes ${bytes} · `);
    const link = make("a", "", "link");
    link.href = `#t${fact.row}-${fact.position}`;
    where.append(link);
    const parts = [make("p", "word", text), make("p", "kind", kindOf(fact, element))];
    if (fact.known) parts.push(numbers(fact), alternatives(fact));
    else parts.push(make("p", "others", "No distribution is kept for this token."));
    panel.replaceChildren(...parts, where);
    cursor(element);
  };
  const dismiss = () => panel.replaceChildren(...hint);

  // ---- charts ----
  const charts = new Map(all(".chart").map((chart) => [Number(chart.dataset.s), chart]));
  const span = (number) => {
    const { flags } = blocks[number]();
    const valid = [...flags].map((digit) => VALUE[digit.charCodeAt(0)] & VALID);
    return [valid.findIndex(Boolean), valid.findLastIndex(Boolean) + 1];
  };
  let marker = null;
  const cursor = (element) => {
    marker?.setAttribute("x", -9);
    const { strip, index } = locate(element);
    const number = Number(strip.dataset.s);
    const chart = charts.get(number);
    if (!chart) return;
    const [first, last] = span(number);
    const bins = one("svg", chart).viewBox.baseVal.width;
    // The column whose tokens, from floor(i * n / bins) on, hold this one.
    const x = Math.ceil(((index - first + 1) * bins) / (last - first)) - 1;
    marker = one("rect", chart);
    marker.setAttribute("x", index >= first && index < last ? x : -9);
  };
  const underPointer = (chart, event) => {
    const number = Number(chart.dataset.s);
    const data = blocks[number]();
    const box = one("svg", chart).getBoundingClientRect();
    const [first, last] = span(number);
    const bins = one("svg", chart).viewBox.baseVal.width;
    const bin = Math.min(bins - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * bins)));
    const edge = (i) => first + Math.floor((i * (last - first)) / bins);
    let best = edge(bin);
    for (let i = best + 1; i < edge(bin + 1); i++) {
      if (read(data.entropy, 3, i - data.first) > read(data.entropy, 3, best - data.first)) best = i;
    }
    return elementAt(stripOf(number), data.start + best);
  };

  // ---- selecting ----
  let current = null;
  let stop = null;
  let pinned = false;
  const release = () => {
    pinned = false;
    current?.classList.remove("now", "pinned");
  };
  const select = (element, { pin = false, focus = true } = {}) => {
    if (!element) return;
    release();
    if (stop) stop.tabIndex = -1;
    current = stop = element;
    pinned = pin;
    element.tabIndex = 0;
    element.classList.add("now");
    element.classList.toggle("pinned", pin);
    if (focus) {
      element.focus({ preventScroll: true });
      element.scrollIntoView({ block: "nearest" });
    }
    const at = forks.indexOf(element);
    one("#place").textContent = at < 0 ? `${forks.length} forks` : `${at + 1} of ${forks.length}`;
    describe(element);
  };
  const toFork = (step) => {
    if (!forks.length) return;
    let at = step > 0 ? 0 : forks.length - 1;
    if (current) {
      const after = forks.findIndex((fork) => current.compareDocumentPosition(fork) & 4);
      const from = after < 0 ? forks.length : after;
      at = step > 0 ? from : from - 1 - (forks[from - 1] === current ? 1 : 0);
    }
    select(forks[(at + forks.length) % forks.length]);
  };
  const toLine = (step) => {
    const box = current.getBoundingClientRect();
    const x = box.left + Math.min(box.width, 12) / 2;
    for (let y = box.height; y < 6 * box.height; y += box.height / 2) {
      const found = tokenAt(document.elementFromPoint(x, step > 0 ? box.bottom + y - box.height / 2 : box.top - y + box.height / 2));
      if (found && found !== current) return found;
    }
    return neighbour(current, step);
  };
  const follow = () => {
    const match = /^#t(\d+)-(\d+)$/.exec(location.hash);
    if (!match) return;
    const [row, position] = [Number(match[1]), Number(match[2])];
    const number = blocks.findIndex((block) => block().row === row
      && position >= block().start && position < block().start + block().flags.length);
    if (number >= 0) select(elementAt(stripOf(number), position), { pin: true });
  };

  // ---- colouring by another metric ----
  const recolour = (metric) => {
    root.dataset.metric = metric;
    for (const strip of strips) {
      const data = blocks[Number(strip.dataset.s)]();
      let slot = -data.first - 1;
      for (const element of linesOf.get(strip).flatMap((line) => [...line.children])) {
        slot += 1;
        const old = element.className;
        if (old[0] === "p" || old[0] === "P") continue;
        const kept = slot >= 0 && slot < data.entropy.length / 3;
        const value = kept && metric !== "reward" ? read(data[metric], 3, slot) : 0;
        const known = metric !== "rank" || value < UNKNOWN_RANK;
        const step = metric === "reward" ? shared().rewards[data.row] : level(metric, known ? value : 0);
        element.className = (old[0] < "a" ? "ABCDEFGH" : "abcdefgh")[step] + old.slice(1);
      }
    }
  };

  // ---- finding text ----
  const lowered = (token) => token.textContent.toLowerCase();
  const find = (needle) => {
    const wanted = needle.toLowerCase();
    const lines = strips.flatMap((strip) => linesOf.get(strip));
    const start = current ? lines.indexOf(current.parentElement) : 0;
    for (let i = 0; i <= lines.length; i++) {
      const line = lines[(start + i) % lines.length];
      const tokens = [...line.children];
      const text = tokens.map(lowered).join("");
      let from = i === 0 && current ? tokens.indexOf(current) + 1 : 0;
      let at = tokens.slice(0, from).reduce((sum, token) => sum + lowered(token).length, 0);
      const hit = text.indexOf(wanted, at);
      if (hit < 0) continue;
      while (at + lowered(tokens[from]).length <= hit) at += lowered(tokens[from++]).length;
      return tokens[from];
    }
    return undefined;
  };

  // ---- events ----
  document.addEventListener("pointerover", (event) => {
    if (pinned || event.pointerType === "touch") return;
    const element = tokenAt(event.target);
    if (element) describe(element);
    else if (current && !event.target.closest?.("aside, .chart")) describe(current);
  });
  document.addEventListener("click", (event) => {
    const element = tokenAt(event.target);
    const chart = event.target.closest?.(".chart");
    if (element) {
      if (element === current && pinned) release();
      else select(element, { pin: true });
    } else if (chart) select(underPointer(chart, event), { pin: true });
    else if (event.target.closest?.('a[href^="#t"]')) setTimeout(follow);
  });
  document.addEventListener("pointermove", (event) => {
    const chart = event.target.closest?.(".chart");
    if (chart && !pinned && event.pointerType !== "touch") describe(underPointer(chart, event));
  });
  document.addEventListener("focusin", (event) => {
    const element = tokenAt(event.target);
    if (element && element !== current) select(element, { focus: false });
  });
  window.addEventListener("hashchange", follow);

  const help = one("#keys");
  const letters = {
    n: () => toFork(1), p: () => toFork(-1), "?": () => help.showModal(),
    "/": () => one("#find").focus(),
  };
  const arrows = {
    ArrowRight: () => neighbour(current, 1), ArrowLeft: () => neighbour(current, -1),
    ArrowDown: () => toLine(1), ArrowUp: () => toLine(-1),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (event.target.matches('input[type="search"]')) {
      if (event.key === "Escape") event.target.blur();
      if (event.key !== "Enter" || !event.target.value) return;
      const found = find(event.target.value);
      select(found, { focus: false });
      if (found) found.scrollIntoView({ block: "nearest" });
      else one("#place").textContent = "not found";
      return;
    }
    const onToken = current && tokenAt(event.target) === current;
    const metric = all('input[name="metric"]')[Number(event.key) - 1];
    if (one("#single").checked && letters[event.key]) letters[event.key]();
    else if (one("#single").checked && metric) metric.click();
    else if (onToken && arrows[event.key]) select(arrows[event.key]() ?? current);
    else if (onToken && event.key === "Enter") select(current, { pin: !pinned });
    else if (event.key === "Escape") { release(); dismiss(); }
    else return;
    event.preventDefault();
  });
  for (const input of all('input[name="metric"]')) {
    input.addEventListener("change", () => METRICS.includes(input.value) && recolour(input.value));
  }
  one("#next").addEventListener("click", () => toFork(1));
  one("#previous").addEventListener("click", () => toFork(-1));
  one("#help").addEventListener("click", () => help.showModal());

  const themes = ["system", "light", "dark"];
  const theme = (name) => {
    if (name === "system") delete root.dataset.theme;
    else root.dataset.theme = name;
    one("#theme").textContent = `Theme: ${name}`;
  };
  one("#theme").addEventListener("click", () => {
    theme(themes[(themes.indexOf(root.dataset.theme ?? "system") + 1) % 3]);
  });

  // ---- inside a frame: tell the height, take the theme ----
  if (window.parent !== window) {
    const tell = () => window.parent.postMessage({ entropyProbeHeight: root.scrollHeight }, "*");
    window.addEventListener("message", (event) => {
      const name = event.data?.entropyProbeTheme;
      if (event.source === window.parent && themes.includes(name)) theme(name);
    });
    // Again later: a frame out of sight, or a busy browser, may lay the page out after it loads.
    window.addEventListener("load", () => { tell(); setTimeout(tell, 1000); });
  }

  root.classList.add("on");
  stop = forks[0] ?? one(".strip i");
  if (stop) stop.tabIndex = 0;
  follow();
})();
