// The browser's half of tlhelpers.course.pad: strokes go to Python as the text of a hidden widget.
(() => {
  const STEP = 0.04; // how far an arrow key moves the pen; the pad is 1 wide
  const CLOSE = 0.004; // points nearer to the last one are left out
  const PATIENCE = 60000; // ms until the widgets must have appeared; after that there is no kernel
  const SLOW = 5000; // ms until an answer should have come
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const HINT = "Draw with mouse, finger or pen, or with the arrow keys and Space.";
  const PEN_DOWN = "The pen is down: arrows draw, Space lifts it.";
  const PEN_UP = "The pen is up: arrows move it, Space puts it down, Backspace undoes.";
  const NO_ANSWER = "No answer: the kernel is busy, or it was restarted; then run this cell again.";
  const LABEL = "Pad to draw on. Arrow keys move the pen, Space puts it down and lifts it, Backspace takes the last stroke back, Tab leaves.";
  const SVG = "http://www.w3.org/2000/svg";

  // The widgets of a pad lie beside it.  Another notebook in the same window has pads of the same numbers.
  function widgetsOf(host) {
    for (let place = host; place && !place.matches(".jp-Notebook"); place = place.parentElement) {
      const box = place.querySelector(`.${host.dataset.pad}`);
      if (box?.querySelector("textarea") && box.querySelector(".tl-pad-answer")) return box;
    }
    return null;
  }

  function add(parent, name, attributes = {}, text = "") {
    const element = parent.appendChild(document.createElement(name));
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  }

  function mount(host, box) {
    host.dataset.mounted = "yes";
    host.textContent = "";
    const sheet = add(host, "div", { class: "tl-pad-sheet", tabindex: "0", role: "application", "aria-label": LABEL });
    const tools = add(host, "div", { class: "tl-pad-tools" });
    const hint = add(host, "p", { class: "tl-pad-hint", "aria-live": "polite" }, HINT);
    const drawing = sheet.appendChild(document.createElementNS(SVG, "svg"));
    drawing.setAttribute("viewBox", "0 0 1 1");
    drawing.setAttribute("aria-hidden", "true");
    const cursor = document.createElementNS(SVG, "circle");

    let strokes = [];
    let current = null; // the stroke that is being drawn
    let pointer = null; // which finger, pen or mouse draws it
    let pen = [0.5, 0.5]; // where the keys draw
    let sent = ""; // what Python was told last
    let slow = null; // the timer that says so when no answer comes
    const held = new Set(); // arrow keys

    function show() {
      const lines = strokes.map((points) => {
        const line = document.createElementNS(SVG, "polyline");
        // A point twice, because a line of one point has no ends to be round.
        line.setAttribute("points", (points.length > 1 ? points : [points[0], points[0]]).join(" "));
        return line;
      });
      cursor.setAttribute("cx", pen[0]);
      cursor.setAttribute("cy", pen[1]);
      cursor.setAttribute("r", current ? 0.03 : 0.02);
      drawing.replaceChildren(...lines, cursor);
    }

    function send() {
      const channel = widgetsOf(host)?.querySelector("textarea");
      if (!channel) {
        hint.textContent = NO_ANSWER;
        return;
      }
      sent = JSON.stringify(strokes);
      if (sent === channel.value) return;
      box.classList.add("tl-pad-waits");
      clearTimeout(slow);
      slow = setTimeout(() => (hint.textContent = NO_ANSWER), SLOW);
      channel.value = sent;
      for (const name of ["input", "change"]) channel.dispatchEvent(new Event(name, { bubbles: true }));
    }

    function begin(point) {
      current = [point];
      strokes.push(current);
      show();
    }

    function extend(point) {
      const [x, y] = current.at(-1);
      if (Math.hypot(point[0] - x, point[1] - y) >= CLOSE) current.push(point);
    }

    function finish() {
      if (!current) return;
      current = pointer = null;
      show();
      send();
    }

    function undo() {
      strokes.pop();
      current = pointer = null;
      show();
      send();
    }

    function clear() {
      strokes = [];
      current = pointer = null;
      show();
      send();
    }

    const inside = (value) => Math.round(Math.min(Math.max(value, 0), 1) * 10000) / 10000;

    function placeOf(event) {
      const area = drawing.getBoundingClientRect();
      return [inside((event.clientX - area.left) / area.width), inside((event.clientY - area.top) / area.height)];
    }

    sheet.addEventListener("pointerdown", (event) => {
      if (pointer !== null || event.button !== 0) return; // a palm beside the pen, another button
      finish(); // what the keys had begun
      pointer = event.pointerId;
      sheet.setPointerCapture(pointer);
      begin(placeOf(event));
    });
    sheet.addEventListener("pointermove", (event) => {
      if (event.pointerId !== pointer) return;
      const passed = event.getCoalescedEvents?.() ?? [];
      for (const step of passed.length ? passed : [event]) extend(placeOf(step));
      show();
    });
    for (const name of ["pointerup", "pointercancel"]) {
      sheet.addEventListener(name, (event) => {
        if (event.pointerId === pointer) finish();
      });
    }

    function press(event) {
      if (event.target !== sheet || event.ctrlKey || event.metaKey || event.altKey || pointer !== null) return;
      if (event.key in ARROWS) {
        held.add(event.key); // two arrows at once draw a diagonal
        for (const key of held) pen = pen.map((value, axis) => inside(value + STEP * ARROWS[key][axis]));
        if (current) extend(pen);
        show();
      } else if (event.key === " " && !event.repeat) {
        if (current) finish();
        else begin(pen);
        hint.textContent = current ? PEN_DOWN : PEN_UP; // read aloud too
      } else if (event.key === "Backspace") {
        undo();
        hint.textContent = PEN_UP;
      } else if (event.key !== " ") {
        return;
      }
      event.preventDefault(); // the page must not scroll,
      event.stopPropagation(); // and Jupyter must not move its own cursor
    }
    // Notebook 7 takes its keys from the document before they reach what has the focus; the window is earlier.
    sheet.addEventListener("focus", () => window.addEventListener("keydown", press, true));
    sheet.addEventListener("keyup", (event) => held.delete(event.key));
    sheet.addEventListener("blur", () => {
      window.removeEventListener("keydown", press, true);
      held.clear();
      if (pointer === null) finish();
      hint.textContent = HINT;
    });

    add(tools, "button", { type: "button" }, "Undo").addEventListener("click", undo);
    add(tools, "button", { type: "button" }, "Clear").addEventListener("click", clear);

    // Python may have set the drawing: before the pad was there, or now.
    function adopt() {
      const text = widgetsOf(host)?.querySelector("textarea").value ?? sent;
      if (text === sent) return;
      strokes = text ? JSON.parse(text) : [];
      current = pointer = null;
      sent = text;
      show();
    }

    box.querySelector(".tl-pad-status").setAttribute("role", "status");
    const answer = box.querySelector(".tl-pad-answer");
    new MutationObserver(() => {
      box.classList.remove("tl-pad-waits");
      clearTimeout(slow);
      if (hint.textContent === NO_ANSWER) hint.textContent = HINT;
      answer.style.minHeight = `${answer.offsetHeight}px`; // it never shrinks: that could move the page under the pen
      adopt();
    }).observe(box, { childList: true, subtree: true });
    show();
    adopt();
  }

  // Widgets appear after this script has run; where there is no kernel they never do, and the sentence stays.
  function mountAll() {
    for (const host of document.querySelectorAll(".tl-pad:not([data-mounted])")) {
      const box = widgetsOf(host);
      if (box) mount(host, box);
    }
  }
  const search = setInterval(mountAll, 50);
  setTimeout(() => clearInterval(search), PATIENCE);
  mountAll();
})();
