-- Share of wrong labels among kept and skipped (needs is_noisy in the samples' json).
-- needs: is_noisy:bool
SELECT run, kept, count(*) AS rows, round(avg(CASE WHEN is_noisy THEN 1.0 ELSE 0.0 END), 4) AS noisy_share
FROM selections JOIN samples USING (shard, ordinal)
WHERE reason IN ('kept', 'below') GROUP BY run, kept ORDER BY run, kept DESC
