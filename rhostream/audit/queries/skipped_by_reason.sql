-- Why samples were skipped: every planned sample by its reason (kept among them), with the share of all.
SELECT run, reason, samples, round(samples / sum(samples) OVER (PARTITION BY run), 4) AS share
FROM (SELECT run, reason, count(*) AS samples FROM selections GROUP BY run, reason)
ORDER BY run, samples DESC, reason
