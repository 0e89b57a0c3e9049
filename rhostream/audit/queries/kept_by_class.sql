-- Kept and skipped by class: which classes does the selection starve?
SELECT run, label, count(*) AS planned, count(*) FILTER (kept) AS kept,
       round(count(*) FILTER (kept) / count(*), 4) AS kept_rate
FROM selections WHERE reason <> 'tail' GROUP BY ALL ORDER BY run, label
