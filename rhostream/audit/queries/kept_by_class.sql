-- Kept and skipped by class: which classes does the selection starve?
SELECT run, label, name AS class, * EXCLUDE (run, label, name)
FROM (
    SELECT run, label, count(*) AS planned, count(*) FILTER (kept) AS kept,
           round(count(*) FILTER (kept) / count(*), 4) AS kept_rate,
           round(avg(loss) FILTER (isfinite(loss)), 3) AS mean_loss, round(avg(il) FILTER (isfinite(il)), 3) AS mean_il
    FROM selections WHERE step IS NOT NULL GROUP BY run, label
) LEFT JOIN classes USING (label) ORDER BY run, label
