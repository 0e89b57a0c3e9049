-- Effective classes of kept batches, exp(entropy) of their labels, against those of chance, in up to twenty slices.
WITH known AS (
    SELECT run, step, effective_classes, effective_classes_uniform, lengths.steps
    FROM steps JOIN (SELECT run, max(step) + 1 AS steps FROM steps GROUP BY run) AS lengths USING (run)
    WHERE effective_classes IS NOT NULL
)
SELECT run, min(step) AS from_step, max(step) AS to_step, round(avg(effective_classes), 3) AS kept,
       round(avg(effective_classes_uniform), 3) AS by_chance, round(min(effective_classes), 3) AS least_kept,
       round(avg(effective_classes) / avg(effective_classes_uniform), 3) AS of_chance
FROM known GROUP BY run, step * 20 // greatest(steps, 20) ORDER BY run, from_step
