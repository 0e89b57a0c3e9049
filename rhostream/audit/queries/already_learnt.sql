-- Already learnt: skipped at the last look, where loss and il were below 0.1 nats (the label had 90 % or more).
SELECT run, count(*) AS samples, count(*) FILTER (learnt) AS learnt,
       round(count(*) FILTER (learnt) / count(*), 4) AS share
FROM (
    SELECT run, NOT arg_max(kept, step) AND arg_max(loss, step) < 0.1 AND arg_max(il, step) < 0.1 AS learnt
    FROM selections WHERE isfinite(loss) AND isfinite(il) GROUP BY run, shard, ordinal
)
GROUP BY run ORDER BY run
