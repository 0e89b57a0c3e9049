-- Share of near-duplicates among kept and skipped (needs duplicate_of in the samples' json).
-- needs: duplicate_of:str
SELECT run, kept, count(*) AS rows, round(avg(CASE WHEN duplicate_of IS NOT NULL THEN 1.0 ELSE 0.0 END), 4) AS share
FROM selections JOIN samples USING (shard, ordinal)
WHERE reason IN ('kept', 'below') GROUP BY run, kept ORDER BY run, kept DESC
