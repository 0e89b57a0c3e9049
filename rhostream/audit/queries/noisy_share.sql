-- Share of wrong labels among kept and skipped, of the looks where it is known (needs is_noisy in the samples' json).
-- needs: is_noisy:bool
SELECT run, kept, count(*) AS rows, count(*) FILTER (is_noisy) AS noisy,
       round(count(*) FILTER (is_noisy) / nullif(count(is_noisy), 0), 4) AS noisy_share,
       count(*) - count(is_noisy) AS unknown
FROM selections JOIN samples USING (shard, ordinal)
WHERE reason IN ('kept', 'below') GROUP BY run, kept ORDER BY run, kept DESC
