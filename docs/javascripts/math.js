// Renders the formulas of a page, on loading it and after instant navigation. Arithmatex
// writes those of Markdown as \(...\) and \[...\]. A wrong one stays as it is, and
// says why in the console.
document$.subscribe(({ body }) =>
  renderMathInElement(body, {
    delimiters: [
      { left: "\\(", right: "\\)", display: false },
      { left: "\\[", right: "\\]", display: true },
    ],
  }),
);
