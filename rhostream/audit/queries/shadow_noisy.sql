-- Share of wrong labels in what each shadow rule would have kept, beside the run's own (needs --shadow and is_noisy).
-- needs: is_noisy:bool
WITH looked AS (SELECT DISTINCT run, step FROM shadow),
picks AS (
    SELECT run, shard, ordinal, rule FROM shadow WHERE kept
    UNION ALL
    SELECT run, shard, ordinal, runs.rule || ' (the run)' AS rule
    FROM selections JOIN looked USING (run, step) JOIN runs USING (run) WHERE kept
)
SELECT run, rule, count(*) AS kept, count(*) FILTER (is_noisy) AS noisy,
       round(count(*) FILTER (is_noisy) / nullif(count(is_noisy), 0), 4) AS noisy_share
FROM picks JOIN samples USING (shard, ordinal) GROUP BY run, rule ORDER BY run, noisy_share, rule
