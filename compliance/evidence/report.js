for (const item of document.querySelectorAll("[data-section]")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = item.textContent;
  button.addEventListener("click", () => document.getElementById(item.dataset.section).scrollIntoView());
  item.replaceChildren(button);
}
