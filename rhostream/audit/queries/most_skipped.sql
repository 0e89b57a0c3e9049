-- The samples that were looked at and skipped most often without ever being kept, lowest mean score first.
SELECT run, shard, ordinal, min(key) AS key, min(label) AS label, count(*) AS skipped,
       round(avg(score) FILTER (isfinite(score)), 3) AS mean_score,
       round(avg(loss) FILTER (isfinite(loss)), 3) AS mean_loss,
       round(avg(il) FILTER (isfinite(il)), 3) AS il
FROM selections WHERE reason IN ('kept', 'below') GROUP BY run, shard, ordinal HAVING NOT bool_or(kept)
QUALIFY row_number() OVER (PARTITION BY run ORDER BY skipped DESC, mean_score NULLS LAST, shard, ordinal) <= 20
ORDER BY run, skipped DESC, mean_score NULLS LAST, shard, ordinal
