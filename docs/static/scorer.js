// Search: a documented name before the pages that mention it, and the list of all names last.
var Scorer = {
  score: ([page, title, anchor, , score, , kind]) => score + (kind === "title" && anchor.startsWith("#api-") ? 12 : 0) - (page === "names" ? 12 : 0),
  objNameMatch: 11, objPartialMatch: 6, objPrio: { 0: 15, 1: 5, 2: -5 }, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
