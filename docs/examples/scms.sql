-- The SCMS delivery history, one shipment for each line item: 33 columns, comma, UTF-8 with a mark.
-- Delivery dates are written 2-Jun-06, purchase orders 6/2/06 with the month first. What was not captured says so in words.
SELECT
  "ID" AS reference,
  map_value(null_if("Shipment Mode", 'N/A'), 'Air', 'air', 'Air Charter', 'air', 'Truck', 'road', 'Ocean', 'ocean') AS mode,
  "Manufacturing Site" AS origin,
  "Country" AS destination,
  'delivered' AS status,
  parse_date(null_if("PO Sent to Vendor Date", 'N/A - From RDC', 'Date Not Captured'), '%m/%d/%y') AS created_at,
  parse_date("Scheduled Delivery Date", '%d-%b-%y') AS promised_at,
  parse_date("Delivered to Client Date", '%d-%b-%y') AS delivered_at,
  number(null_if("Weight (Kilograms)", 'Weight Captured Separately', 'See *')) AS weight_kg,
  number(null_if("Freight Cost (USD)", 'Freight Included in Commodity Cost', 'Invoiced Separately', 'See *')) AS cost,
  'USD' AS currency
FROM csv
