-- Suspected label errors: the IL model is surest of another class than the label says (highest il first).
SELECT il.shard, il.ordinal, il.key, il.label, il.predicted, given.name AS class, other.name AS predicted_class,
       round(il.il, 3) AS il, seen.looks, seen.kept, round(seen.last_loss, 3) AS last_loss
FROM il LEFT JOIN (
    SELECT shard, ordinal, count(*) AS looks, count(*) FILTER (kept) AS kept,
           arg_max(loss, step) FILTER (isfinite(loss)) AS last_loss
    FROM selections GROUP BY shard, ordinal
) AS seen USING (shard, ordinal)
LEFT JOIN classes AS given ON given.label = il.label LEFT JOIN classes AS other ON other.label = il.predicted
WHERE il.status = 'ok' AND il.predicted <> il.label AND isfinite(il.il)
ORDER BY il.il DESC, il.shard, il.ordinal LIMIT 20
