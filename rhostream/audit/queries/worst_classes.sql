-- Accuracy by class at the last evaluation, worst first, beside how often the class is kept.
WITH latest AS (
    SELECT run, unnest(class_accuracy) AS accuracy, generate_subscripts(class_accuracy, 1) - 1 AS label
    FROM steps WHERE isfinite(test_accuracy) QUALIFY row_number() OVER (PARTITION BY run ORDER BY step DESC) = 1
), rates AS (
    SELECT run, label, count(*) AS planned, round(count(*) FILTER (kept) / count(*), 4) AS kept_rate
    FROM selections WHERE step IS NOT NULL AND label IS NOT NULL GROUP BY run, label
)
SELECT run, label, name AS class, round(accuracy, 4) AS accuracy, planned, kept_rate
FROM latest FULL JOIN rates USING (run, label) LEFT JOIN classes USING (label)
ORDER BY run, accuracy NULLS LAST, kept_rate, label
