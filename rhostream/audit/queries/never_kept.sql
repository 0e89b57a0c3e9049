-- Samples that were looked at and never kept, by how often they were looked at.
SELECT run, looks, count(*) AS samples, count(*) FILTER (NOT ever) AS never_kept
FROM (SELECT run, shard, ordinal, count(*) AS looks, bool_or(kept) AS ever FROM selections
      WHERE reason IN ('kept', 'below') GROUP BY ALL) GROUP BY ALL ORDER BY run, looks
