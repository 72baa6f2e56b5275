package controlplane

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	"k8s.io/kubernetes/cmd/kubeadm/app/util/pkiutil"
)

// Lifetimes of certificates. Those below an authority are made anew at a start when less than renewBefore is left.
const (
	caLifetime   = 10 * 365 * 24 * time.Hour
	certLifetime = 365 * 24 * time.Hour
	renewBefore  = 90 * 24 * time.Hour
)

// authority is a certificate with the key that signs others.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	file string // of the certificate
}

// openAuthority reads an authority of the data directory, or makes it. It is never replaced: what it has signed lives
// outside, in kubeconfigs and in nodes.
func openAuthority(dir, name string) (*authority, error) {
	file := filepath.Join(dir, name+".crt")
	cert, key, err := pkiutil.TryLoadCertAndKeyFromDisk(dir, name)
	if err == nil {
		return &authority{cert, key, file}, nil
	}
	if _, missing := os.Stat(file); !errors.Is(missing, fs.ErrNotExist) {
		return nil, fmt.Errorf("authority %s is there but cannot be read: %w", file, err)
	}
	cert, key, err = pkiutil.NewCertificateAuthority(&pkiutil.CertConfig{Config: certutil.Config{CommonName: "spillway-" + name}, NotAfter: time.Now().Add(caLifetime),
		EncryptionAlgorithm: kubeadmapi.EncryptionAlgorithmECDSAP256})
	if err != nil {
		return nil, fmt.Errorf("make authority %s: %w", name, err)
	}
	// The key first: a certificate without its key would be an authority that cannot be read.
	if err := errors.Join(pkiutil.WriteKey(dir, name, key), pkiutil.WriteCert(dir, name, cert)); err != nil {
		return nil, fmt.Errorf("write authority %s: %w", name, err)
	}
	return &authority{cert, key, file}, nil
}

// subject is whom a certificate is for.
type subject struct {
	name          string // common name: the user, or the server
	organizations []string
	usage         x509.ExtKeyUsage
	names         []string
	addresses     []net.IP
}

// sign makes a certificate and its key in memory.
func (a *authority) sign(s subject) (*x509.Certificate, crypto.Signer, error) {
	return pkiutil.NewCertAndKey(a.cert, a.key, &pkiutil.CertConfig{NotAfter: time.Now().Add(certLifetime), EncryptionAlgorithm: kubeadmapi.EncryptionAlgorithmECDSAP256,
		Config: certutil.Config{CommonName: s.name, Organization: s.organizations, Usages: []x509.ExtKeyUsage{s.usage},
			AltNames: certutil.AltNames{DNSNames: s.names, IPs: s.addresses}}})
}

// keep makes sure that a certificate is in the directory, signed by this authority, valid for a while and for all the
// subject's names.
func (a *authority) keep(dir, name string, s subject) (certFile, keyFile string, err error) {
	certFile, keyFile = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	if old, _, err := pkiutil.TryLoadCertAndKeyFromDisk(dir, name); err == nil && a.serves(old, s) {
		return certFile, keyFile, nil
	}
	cert, key, err := a.sign(s)
	if err != nil {
		return "", "", fmt.Errorf("sign %s: %w", name, err)
	}
	if err := pkiutil.WriteCertAndKey(dir, name, cert, key); err != nil {
		return "", "", fmt.Errorf("write %s: %w", name, err)
	}
	return certFile, keyFile, nil
}

// serves says whether a certificate still does for a subject.
func (a *authority) serves(cert *x509.Certificate, s subject) bool {
	if cert.CheckSignatureFrom(a.cert) != nil || time.Until(cert.NotAfter) < renewBefore || cert.Subject.CommonName != s.name {
		return false
	}
	for _, n := range s.names {
		if !slices.Contains(cert.DNSNames, n) {
			return false
		}
	}
	for _, ip := range s.addresses {
		if !slices.ContainsFunc(cert.IPAddresses, ip.Equal) {
			return false
		}
	}
	return true
}

// signingKey makes sure that the key which signs service accounts' tokens is there.
func signingKey(dir string) (string, error) {
	file := filepath.Join(dir, "service-accounts.key")
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	key, err := pkiutil.NewPrivateKey(kubeadmapi.EncryptionAlgorithmECDSAP256)
	if err != nil {
		return "", err
	}
	body, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return "", err
	}
	return file, writeWhole(file, body)
}

// writeWhole writes a file that is there whole or not at all.
func writeWhole(file string, body []byte) error {
	if err := os.WriteFile(file+".new", body, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// kubeconfig writes a configuration with a client certificate of its own.
func (a *authority) kubeconfig(file, server string, s subject) error {
	cert, key, err := a.sign(s)
	if err != nil {
		return fmt.Errorf("sign %s: %w", s.name, err)
	}
	pem, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return err
	}
	ca, err := pkiutil.EncodeCertBundlePEM([]*x509.Certificate{a.cert})
	if err != nil {
		return err
	}
	const name = "spillway"
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters[name] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca}
	cfg.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: pkiutil.EncodeCertPEM(cert), ClientKeyData: pem}
	cfg.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	cfg.CurrentContext = name
	body, err := clientcmd.Write(*cfg)
	if err != nil {
		return err
	}
	return writeWhole(file, body)
}
