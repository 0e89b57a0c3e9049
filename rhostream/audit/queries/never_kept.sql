-- Samples that were looked at and never kept, by how often they were looked at.
SELECT run, looks, count(*) AS samples, count(*) FILTER (NOT ever) AS never_kept,
       round(count(*) FILTER (NOT ever) / count(*), 4) AS share
FROM (
    SELECT run, count(*) AS looks, bool_or(kept) AS ever
    FROM selections WHERE reason IN ('kept', 'below') GROUP BY run, shard, ordinal
)
GROUP BY run, looks ORDER BY run, looks
