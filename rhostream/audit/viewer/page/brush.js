// A range that is drawn with the pointer: a new one, the old one moved, or one of its ends.

const NEAR = 6; // pixels from an end that take hold of it

/**
 * Lets `surface` draw ranges between two pixels of its x axis. `range()` gives the present one in pixels or null,
 * `changed([from, to] or null)` is called while it is drawn.
 */
export function brushX(surface, { left, right, range, changed }) {
  let grip = null;
  const at = (event) => Math.min(Math.max(event.clientX - surface.getBoundingClientRect().left, left()), right());
  surface.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    const x = at(event);
    const now = range();
    if (now && Math.abs(x - now[0]) < NEAR) grip = { fixed: now[1], start: x };
    else if (now && Math.abs(x - now[1]) < NEAR) grip = { fixed: now[0], start: x };
    else if (now && x > now[0] && x < now[1]) grip = { moved: now, start: x };
    else grip = { fixed: x, start: x, fresh: true };
    surface.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  surface.addEventListener("pointermove", (event) => {
    if (!grip) return;
    const x = at(event);
    if (grip.moved) {
      const shift = Math.min(Math.max(x - grip.start, left() - grip.moved[0]), right() - grip.moved[1]);
      changed(grip.moved.map((end) => end + shift));
    } else if (!grip.fresh || Math.abs(x - grip.start) > 2) {
      grip.fresh = false;
      changed([Math.min(x, grip.fixed), Math.max(x, grip.fixed)]);
    }
  });
  const end = (event) => {
    if (grip && event.type === "pointerup" && Math.abs(at(event) - grip.start) <= 2 && (grip.fresh || grip.moved)) changed(null);
    grip = null;
  };
  surface.addEventListener("pointerup", end);
  surface.addEventListener("pointercancel", end);
}

/** The same for a rectangle: `changed([x0, x1, y0, y1] or null)`, in pixels of the surface. */
export function brushXY(surface, { box, changed }) {
  let start = null;
  const at = (event) => {
    const place = surface.getBoundingClientRect();
    const { left, right, top, bottom } = box();
    return [
      Math.min(Math.max(event.clientX - place.left, left), right),
      Math.min(Math.max(event.clientY - place.top, top), bottom),
    ];
  };
  const far = (a, b) => Math.max(Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1])) > 3;
  surface.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    start = at(event);
    surface.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  surface.addEventListener("pointermove", (event) => {
    if (!start) return;
    const now = at(event);
    if (far(now, start)) {
      changed([Math.min(now[0], start[0]), Math.max(now[0], start[0]), Math.min(now[1], start[1]), Math.max(now[1], start[1])]);
    }
  });
  surface.addEventListener("pointerup", (event) => {
    if (start && !far(at(event), start)) changed(null);
    start = null;
  });
  surface.addEventListener("pointercancel", () => { start = null; });
}
