-- What is kept over time, in up to twenty slices of the run: mean loss and il, and how much was right already.
WITH looks AS (
    SELECT run, step, kept, loss, il, correct, lengths.steps
    FROM selections JOIN (SELECT run, max(step) + 1 AS steps FROM selections GROUP BY run) AS lengths USING (run)
    WHERE isfinite(loss) AND step IS NOT NULL
)
SELECT run, min(step) AS from_step, max(step) AS to_step, count(*) AS looks, count(*) FILTER (kept) AS kept,
       round(avg(loss) FILTER (kept), 3) AS loss_kept, round(avg(loss), 3) AS loss_all,
       round(avg(il) FILTER (kept AND isfinite(il)), 3) AS il_kept,
       round(avg(il) FILTER (isfinite(il)), 3) AS il_all,
       round(count(*) FILTER (kept AND correct) / nullif(count(*) FILTER (kept), 0), 3) AS already_correct
FROM looks GROUP BY run, step * 20 // greatest(steps, 20) ORDER BY run, from_step
