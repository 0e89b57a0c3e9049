-- The samples that were skipped most often without ever being kept, and how far they were from being worth it.
SELECT run, shard::VARCHAR AS shard, ordinal, any_value(key) AS key, any_value(label) AS label,
       count(*) AS skipped, round(avg(score) FILTER (isfinite(score)), 3) AS mean_score,
       round(avg(il) FILTER (isfinite(il)), 3) AS il
FROM selections WHERE reason = 'below' GROUP BY run, selections.shard, ordinal
HAVING NOT bool_or(kept) ORDER BY run, skipped DESC, mean_score, shard, ordinal LIMIT 20
