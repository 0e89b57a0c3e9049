-- How far rules agree: of what one keeps, the share that another keeps too, from the same forwards (needs --shadow).
WITH looked AS (SELECT DISTINCT run, step FROM shadow),
picks AS (
    SELECT run, step, shard, ordinal, rule FROM shadow WHERE kept
    UNION ALL
    SELECT run, step, shard, ordinal, runs.rule || ' (the run)' AS rule
    FROM selections JOIN looked USING (run, step) JOIN runs USING (run) WHERE kept
),
totals AS (SELECT run, rule, count(*) AS kept FROM picks GROUP BY run, rule)
SELECT run, one.rule, other.rule AS other, totals.kept, round(count(*) / totals.kept, 4) AS shared
FROM picks AS one JOIN picks AS other USING (run, step, shard, ordinal) JOIN totals ON totals.run = run
AND totals.rule = one.rule WHERE one.rule <> other.rule GROUP BY run, one.rule, other.rule, totals.kept
ORDER BY run, one.rule, shared DESC, other
