// Renders formulas, which Arithmatex writes as \(...\) and \[...\].
const delimiters = [
  { left: "\\(", right: "\\)", display: false },
  { left: "\\[", right: "\\]", display: true },
];

// Of a page, on loading it and after instant navigation. A wrong formula stays as it is,
// and says why in the console.
document$.subscribe(({ body }) => renderMathInElement(body, { delimiters }));

// Of results of the search. One that has a word in it that was sought stays as it is.
const results = document.querySelector(".md-search-result__list");
const render = () =>
  renderMathInElement(results, { delimiters, errorCallback: () => {} });
new MutationObserver(render).observe(results, { childList: true });
