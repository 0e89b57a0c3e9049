-- Already learnt: skipped with a loss near zero at the last look.
SELECT run, count(*) AS samples, count(*) FILTER (last_loss < 0.1) AS learnt,
       round(count(*) FILTER (last_loss < 0.1) / count(*), 4) AS share
FROM (SELECT run, shard, ordinal, arg_max(loss, step) AS last_loss FROM selections
      WHERE isfinite(loss) GROUP BY ALL) GROUP BY run ORDER BY run
