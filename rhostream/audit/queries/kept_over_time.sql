-- What is kept, twenty slices of the run: mean loss and il, and how much the model had right already.
SELECT run, step // greatest((SELECT max(step) + 1 FROM selections) // 20, 1) AS slice, min(step) AS from_step,
       round(avg(loss) FILTER (kept), 3) AS loss_kept, round(avg(il) FILTER (kept), 3) AS il_kept,
       round(avg(CASE WHEN correct THEN 1.0 ELSE 0.0 END) FILTER (kept), 3) AS already_correct
FROM selections WHERE isfinite(loss) GROUP BY ALL ORDER BY run, slice
