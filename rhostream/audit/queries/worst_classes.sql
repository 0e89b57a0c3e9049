-- Accuracy by class at the last evaluation, worst first.
SELECT run, class, round(accuracy, 4) AS accuracy
FROM (SELECT run, unnest(class_accuracy) AS accuracy, generate_subscripts(class_accuracy, 1) - 1 AS class
      FROM steps WHERE test_accuracy IS NOT NULL QUALIFY row_number() OVER (PARTITION BY run ORDER BY step DESC) = 1)
ORDER BY run, accuracy, class
