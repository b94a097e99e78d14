// The chat's scrolling: it follows an answer until the user scrolls up, however little, and again from the end on.

import {byId, h, icon} from "./dom.js";

const NEAR = 2; // pixels from the end that count as the end

export function startScrolling() {
  const scroller = byId("scroller");
  let following = true,
    lastTop = 0,
    lastHeight = 0;

  const rest = () => scroller.scrollHeight - scroller.clientHeight - scroller.scrollTop;
  const toEnd = () => {
    following = true;
    scroller.scrollTop = scroller.scrollHeight;
    lastTop = scroller.scrollTop;
    show();
  };
  const jump = h(
    "button",
    {type: "button", id: "to-end", "aria-label": "To the end", title: "To the end", hidden: true, onclick: toEnd},
    icon("down"),
  );
  const show = () => {
    jump.hidden = rest() < 80;
  };

  scroller.addEventListener(
    "scroll",
    () => {
      const shrunk = scroller.scrollHeight < lastHeight; // then the browser itself moved up
      if (scroller.scrollTop < lastTop - 0.5 && !shrunk) following = false;
      else if (rest() <= NEAR) following = true;
      [lastTop, lastHeight] = [scroller.scrollTop, scroller.scrollHeight];
      show();
    },
    {passive: true},
  );
  // The wheel is heard before it scrolls: else an answer's next words could be quicker.
  scroller.addEventListener(
    "wheel",
    (event) => {
      if (event.deltaY < 0) following = false;
    },
    {passive: true},
  );

  const grown = new ResizeObserver(() => {
    if (following) toEnd();
    lastHeight = scroller.scrollHeight;
    show();
  });
  grown.observe(byId("thread"));
  grown.observe(scroller);
  byId("main").append(jump);
  const hold = () => {
    following = false;
  };
  const toTop = () => {
    hold();
    scroller.scrollTop = 0;
  };
  return {toEnd, toTop, hold};
}
