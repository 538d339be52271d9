-- Sends every radiograph that arrives to the node; its reports (SR) and heatmaps (OT) come back
-- by C-STORE and are not sent again, since only CR and DX are.
local RADIOGRAPHS = { CR = true, DX = true }

function OnStoredInstance(instanceId, tags, metadata)
  if RADIOGRAPHS[tags['Modality']] then
    SendToModality(instanceId, 'pneumoscope')
  end
end
