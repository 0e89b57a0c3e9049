-- Every planned sample by its reason, with the share of all.
SELECT run, reason, samples, round(samples / sum(samples) OVER (PARTITION BY run), 4) AS share
FROM (SELECT run, reason, count(*) AS samples FROM selections GROUP BY ALL) ORDER BY run, samples DESC, reason
