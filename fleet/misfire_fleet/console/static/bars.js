// Sets the widths of bars. The Content-Security-Policy forbids style attributes, so a bar says `data-width="37%"`.

function draw(root) {
  if (root.dataset?.width) root.style.width = root.dataset.width;
  for (const bar of root.querySelectorAll?.("[data-width]") ?? []) bar.style.width = bar.dataset.width;
}

// htmx and scripts add cards later.
new MutationObserver((changes) => {
  for (const change of changes) for (const added of change.addedNodes) draw(added);
}).observe(document.documentElement, { childList: true, subtree: true });
draw(document);
