-- A GET whose path is another one every time.
local count = 0

request = function()
  count = count + 1
  return wrk.format(nil, "/shelves/" .. count % 97 .. "/books/" .. count .. "?edition=" .. count % 7)
end
