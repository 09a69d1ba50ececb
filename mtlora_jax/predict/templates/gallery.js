"use strict";
{
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);
  const articles = all("article");
  const dialog = one("large");

  // Pictures are read out of an article when it comes near the window, so that a page of many opens at once.
  const read = new WeakMap();
  const pictures = (article) => {
    if (!read.has(article)) read.set(article, JSON.parse(article.querySelector("script").textContent));
    return read.get(article);
  };
  const fill = (article) => {
    for (const image of all("img[data-picture]:not([src])", article)) image.src = pictures(article)[image.dataset.picture];
  };
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((entry) => entry.isIntersecting)) {
      fill(entry.target);
      near.unobserve(entry.target);
    }
  }, { rootMargin: "1000px" });
  articles.forEach((article) => near.observe(article));
  addEventListener("beforeprint", () => articles.forEach(fill));

  const tasksOf = (inputs) => inputs.map((input) => input.dataset.shows);
  const shownTasks = () => {
    const shown = tasksOf(all("input[data-shows]:checked"));
    return shown.length ? shown : tasksOf(all("input[data-shows]"));
  };
  const shownArticles = () => articles.filter((article) => !article.hidden);

  for (const input of all("input[data-shows]")) {
    input.addEventListener("change", () => {
      for (const figure of all("figure.task")) if (figure.dataset.task === input.dataset.shows) figure.hidden = !input.checked;
    });
  }
  one("labels")?.addEventListener("change", (event) => document.body.classList.toggle("unlabelled", !event.target.checked));
  for (const fader of all(".fader")) {
    fader.addEventListener("input", () => {
      document.documentElement.style.setProperty("--fade", fader.value / 100);
      for (const other of all(".fader")) other.value = fader.value;
    });
  }
  one("find").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    for (const article of articles) article.hidden = !article.dataset.name.toLowerCase().includes(wanted);
    const count = shownArticles().length;
    one("count").textContent = (count < articles.length ? `${count} of ` : "") + `${articles.length} images`;
    one("nothing").hidden = count > 0;
  });

  let current, task;
  const show = () => {
    const own = pictures(current);
    const figure = all("figure.task", current).find((figure) => figure.dataset.task === task);
    const list = shownArticles();
    one("large-name").textContent = `${current.dataset.name} (${list.indexOf(current) + 1} of ${list.length})`;
    for (const button of all("button", one("large-tasks"))) button.setAttribute("aria-pressed", button.dataset.task === task);
    dialog.style.setProperty("--ratio", current.style.getPropertyValue("--ratio"));
    const set = (id, key, text) => { one(id).src = own[key]; one(id).alt = text; };
    set("large-photograph", "photograph", `Photograph ${current.dataset.name}`);
    set("large-under", "photograph", "");
    set("large-prediction", task, `${task} predicted for ${current.dataset.name}`);
    one("large-file").href = figure.dataset.file;
    if (one("large-labelled")) {
      one("large-labelled").hidden = !(`${task} label` in own) || document.body.classList.contains("unlabelled");
      if (`${task} label` in own) {
        set("large-label-under", "photograph", "");
        set("large-label", `${task} label`, `${task} label of ${current.dataset.name}`);
      }
    }
    one("large-legend").replaceChildren(...all(".legend", figure).map((legend) => legend.cloneNode(true)));
  };
  const other = (list, item, by) => list[(list.indexOf(item) + by + list.length) % list.length];
  const toImage = (by) => { current = other(shownArticles(), current, by); show(); };
  const toTask = (by) => { task = other(shownTasks(), task, by); show(); };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-opens]");
    if (!button) return;
    current = button.closest("article");
    // The photograph opens the first task that is shown.
    task = button.closest("figure.task") ? button.dataset.opens : shownTasks()[0];
    show();
    dialog.showModal();
  });
  one("previous").addEventListener("click", () => toImage(-1));
  one("next").addEventListener("click", () => toImage(1));
  one("close").addEventListener("click", () => dialog.close());
  one("large-tasks").addEventListener("click", (event) => {
    if (event.target.dataset.task) { task = event.target.dataset.task; show(); }
  });
  const keys = { ArrowLeft: () => toImage(-1), ArrowRight: () => toImage(1), ArrowUp: () => toTask(-1), ArrowDown: () => toTask(1) };
  dialog.addEventListener("keydown", (event) => {
    if (event.target.matches("input") || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  dialog.addEventListener("close", () => current.scrollIntoView({ block: "nearest" }));
}
