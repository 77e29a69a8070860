// What does not look right on a page, as a list of sentences: the value of this expression.
(() => {
  const faults = [];
  const root = document.documentElement;
  const width = root.clientWidth;
  if (root.scrollWidth > width) faults.push(`the page is ${root.scrollWidth} wide on a screen of ${width}`);

  const over = [...document.querySelectorAll('main *')].find(it => {
    const box = it.getBoundingClientRect();
    return box.right > width + 1 && box.width > 2;
  });
  if (over) faults.push(`<${over.tagName}> reaches beyond the screen: '${over.textContent.slice(0, 60)}'`);

  for (const chart of document.querySelectorAll('svg.chart')) {
    const name = chart.getAttribute('aria-label');
    const frame = chart.getBoundingClientRect();
    const texts = [...chart.querySelectorAll('text')].filter(it => it.textContent);
    const boxes = texts.map(it => [it.firstChild.textContent, it.getBoundingClientRect()]);
    boxes.forEach(([text, box], i) => {
      const inside = box.left >= frame.left - 1 && box.right <= frame.right + 1
        && box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
      if (!inside) faults.push(`${name}: '${text}' is cut`);
      for (const [other, second] of boxes.slice(i + 1)) {
        const wide = Math.min(box.right, second.right) - Math.max(box.left, second.left);
        const high = Math.min(box.bottom, second.bottom) - Math.max(box.top, second.top);
        if (wide > 1 && high > 2.5) faults.push(`${name}: '${text}' lies over '${other}'`);
      }
    });
  }

  // WCAG 2.2, 1.4.3: 4.5 for text; a name inside a bar is measured against the bar.
  const linear = part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const light = colour => {
    const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map(part => linear(part / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const ground = getComputedStyle(root).backgroundColor;
  const seen = new Set();
  for (const it of document.querySelectorAll('p, li, a, dt, dd, th, td, summary, h1, h2, h3, strong, b, code, text')) {
    const style = getComputedStyle(it);
    const drawn = it.tagName === 'text';
    const colour = drawn ? style.fill : style.color;
    const below = drawn && it.classList.contains('inside')
      ? getComputedStyle(it.previousElementSibling).fill : ground;
    const ratio = contrast(colour, below);
    if (ratio < 4.5 && !seen.has(colour + below)) {
      seen.add(colour + below);
      faults.push(`${it.tagName} '${it.textContent.slice(0, 30)}': ${colour} on ${below}, contrast ${ratio.toFixed(2)}`);
    }
  }
  return faults;
})()
