package arm

import "spillway.dev/spillway/internal/group"

// KeepSecrets fills the secrets that a client could not send because no GET ever returned them: a body that was read,
// edited and put back keeps the secrets it had. update is changed in place.
func KeepSecrets(old, update *group.Spec) {
	for _, lists := range [][2][]group.Container{{old.Containers, update.Containers}, {old.InitContainers, update.InitContainers}, {old.Ephemeral, update.Ephemeral}} {
		for i := range lists[1] {
			for j := range lists[0] {
				if lists[0][j].Name == lists[1][i].Name {
					keepEnv(lists[0][j].Env, lists[1][i].Env)
				}
			}
		}
	}
	for i := range update.Credentials {
		for _, c := range old.Credentials {
			if n := &update.Credentials[i]; n.Password == "" && n.Server == c.Server && n.Username == c.Username {
				n.Password = c.Password
			}
		}
	}
	for i := range update.Volumes {
		for j := range old.Volumes {
			if old.Volumes[j].Name == update.Volumes[i].Name {
				keepVolume(&old.Volumes[j], &update.Volumes[i])
			}
		}
	}
}

func keepEnv(old, update []group.EnvVar) {
	for i := range update {
		for _, e := range old {
			if n := &update[i]; n.Name == e.Name && e.Secret && !n.Secret && n.Value == "" {
				n.Value, n.Secret = e.Value, true
			}
		}
	}
}

func keepVolume(old, update *group.Volume) {
	if old.Secret != nil && update.Secret != nil && len(update.Secret.Data) == 0 {
		update.Secret.Data = old.Secret.Data
	}
	a, b := old.AzureFile, update.AzureFile
	if a != nil && b != nil && b.AccountKey == "" && a.Share == b.Share && a.Account == b.Account {
		b.AccountKey = a.AccountKey
	}
}
