// On a phone a figure fits the page; a tap enlarges it in a box that scrolls, see site.css.
document$.subscribe(({ body }) => {
  for (const image of body.querySelectorAll("article img"))
    image.addEventListener("click", () => image.classList.toggle("enlarged"));
});
