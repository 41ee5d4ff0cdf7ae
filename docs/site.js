// What scrolls can be reached by the keyboard, and the buttons of each block of code have a name of their own.
const SCROLLED = ".md-typeset pre > code, .md-typeset__scrollwrap";

function name() {
  for (const box of document.querySelectorAll(SCROLLED)) {
    if (!box.hasAttribute("tabindex") && box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
  for (const buttons of document.querySelectorAll(".md-code__nav:not([aria-label])")) {
    buttons.setAttribute("aria-label", `Code ${buttons.closest("[id]").id.replace(/\D+/, "")}`);
  }
}

const watched = { childList: true, subtree: true, attributes: true, attributeFilter: ["tabindex"] };
new MutationObserver(name).observe(document.body, watched);
addEventListener("resize", name);
name();
