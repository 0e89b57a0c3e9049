-- Share of near-duplicates among kept and skipped (needs duplicate_of in the samples' json).
-- needs: duplicate_of:str
SELECT run, kept, count(*) AS rows, count(*) FILTER (duplicate_of <> '') AS duplicates,
       round(count(*) FILTER (duplicate_of <> '') / count(*), 4) AS duplicates_share
FROM selections JOIN samples USING (shard, ordinal)
WHERE reason IN ('kept', 'below') GROUP BY run, kept ORDER BY run, kept DESC
