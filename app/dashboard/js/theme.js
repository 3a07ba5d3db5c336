// A classic script in the head, so that the chosen theme is there before anything is painted.
const chosenTheme = localStorage.getItem('theme');
if (chosenTheme) document.documentElement.dataset.theme = chosenTheme;
