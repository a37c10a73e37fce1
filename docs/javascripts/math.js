// Renders the formulas of a page, on loading it and after instant navigation. Arithmatex
// writes those of Markdown as \(...\) and \[...\].
document$.subscribe(({ body }) =>
  renderMathInElement(body, {
    delimiters: [
      { left: "\\(", right: "\\)", display: false },
      { left: "\\[", right: "\\]", display: true },
    ],
    throwOnError: false, // a wrong formula is shown in red, and the rest of the page too
  }),
);
